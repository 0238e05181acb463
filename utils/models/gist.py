"""A published model from GitHub's gist API: model.py and config.json at one revision. Runs nothing of what it fetches.

API facts: https://docs.github.com/en/rest/gists/gists (a file beyond about 1 MB comes `truncated`, whole at `raw_url`)
and https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api (headers of a refusal).
"""

import ipaddress
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ReadTimeoutError
from urllib3.util.retry import Retry

from utils.models.findings import ExportError
from utils.models.source import (
    MAX_BYTES,
    PUBLISHED,
    ModelSource,
    SourceError,
    check_bytes,
    keep,
    kept,
    missing_files,
    shown,
)
from utils.runtime.files import cache_dir

API = "https://api.github.com"
PAGES, RAW = "gist.github.com", "gist.githubusercontent.com"
TRIES = 4
BACKOFF = 0.5  # seconds; doubles with every further try
TIMEOUT = (10.0, 20.0)  # seconds to connect, and to wait for the next bytes
LONGEST = 120.0  # seconds for one answer, however steadily it drips
MAX_ANSWER = 64_000_000  # bytes of one answer of the API, which holds up to 1 MB of each of a gist's files
REDIRECTS = 3
ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{20}")
REVISION = re.compile(r"[0-9a-f]{40}")
FORMS = f"an id of 20 or 32 hexadecimal digits, or its URL, as in https://{PAGES}/owner/id"


def is_gist(text: str) -> bool:
    """Whether `text` can only be meant as a gist: a bare id, or a URL of GitHub's gist pages or API."""
    host = _url(text.strip()).hostname
    return bool(ID.fullmatch(text.strip().lower()) or (host and host in _hosts()))


def parse_gist(text: str, revision: str = "") -> tuple[str, str]:
    """Id and revision ("" for the latest) of a gist named by a bare id or by a URL of its page, raw file or API entry.

    A URL may carry a revision, a query and an anchor. The hash in a raw URL is not taken for a revision: GitHub puts
    the hash of the file there. Raises ValueError for anything else, and for two revisions that differ.
    """
    text, revision = text.strip(), revision.strip().lower()
    gist_id, found = text.lower(), ""
    if not ID.fullmatch(gist_id):
        gist_id, found = _parse_url(text)
    if revision and not REVISION.fullmatch(revision):
        raise SourceError(f"{shown(revision)} is no revision of a gist: that is 40 hexadecimal digits, all of them")
    if found and revision and found != revision:
        raise SourceError(f"two revisions: {found} in the URL and {revision} beside it; give one of them")
    return gist_id, revision or found


def _parse_url(text: str) -> tuple[str, str]:
    url = _url(text)
    parts = [part for part in url.path.lower().split("/") if part]
    at = None
    if url.hostname in (PAGES, RAW):
        parts = parts[:-1] + [re.sub(r"\.(git|js|json)$", "", part) for part in parts[-1:]]
        # An owner's name can look like an id, so the id is the second part wherever the second part is one.
        at = next((i for i in (1, 0) if i < len(parts) and ID.fullmatch(parts[i])), None)
    elif url.hostname and url.hostname in _hosts() and "gists" in parts:
        at = parts.index("gists") + 1
    if at is None or at >= len(parts) or not ID.fullmatch(parts[at]):
        raise SourceError(f"{shown(text)!r} is no gist: give {FORMS}")
    rest = parts[at + 1 :]
    if rest and REVISION.fullmatch(rest[0]):
        return parts[at], rest[0]
    if rest and rest[0] not in ("raw", "revisions", "forks", "stargazers", "edit"):
        raise SourceError(f"{shown(text)!r}: {shown(rest[0])} is no revision of a gist: that is 40 hexadecimal digits")
    return parts[at], ""


def fetch_gist(ref: str, revision: str = "", cache: Path | None = None) -> ModelSource:
    """A gist's model.py and config.json, byte for byte, in the cache; a pinned revision kept there needs no network.

    Args:
        ref: see `parse_gist`. revision: 40 hexadecimal digits; "" for the latest.
        cache: the folder to keep it under; None for the user's own.

    Reads GITHUB_API_URL (another API root) and GITHUB_TOKEN (sent to that root's host and nowhere else).
    Raises SourceError if it cannot be had, ExportError if what is there is not a model.py and a config.json.
    """
    gist_id, revision = parse_gist(ref, revision)
    cache = cache or cache_dir()
    if revision and (source := kept(cache, _name(gist_id, revision), ref, revision)):
        return source
    client = _Client(gist_id, revision)
    with client.session:
        try:
            gist = client.gist()
        except SourceError as error:
            raise SourceError(f"{error}{_kept_before(cache, gist_id)}") from None
        files, revision = gist["files"], revision or gist["history"][0]["version"]
        if source := kept(cache, _name(gist_id, revision), ref, revision):
            return source
        if lacking := missing_files(files):
            raise ExportError(lacking)
        content = {name: client.file(name, files[name]) for name in PUBLISHED}
    check_bytes(content)
    owner = str((gist.get("owner") or {}).get("login") or "")
    return keep(cache, _name(gist_id, revision), content, kind="builder", ref=ref, revision=revision, owner=owner)


def _name(gist_id: str, revision: str) -> str:
    return f"gist-{gist_id}-{revision[:12]}"


def _kept_before(cache: Path, gist_id: str) -> str:
    """What to do without GitHub: a revision that is here already. "" where there is none."""
    found = []
    for path in sorted((cache / "models").glob(f"gist-{gist_id}-*.json"), key=lambda path: path.stat().st_mtime):
        try:
            found.append(str(json.loads(path.read_text(encoding="utf-8"))["revision"]))
        except (OSError, ValueError, TypeError, KeyError):  # damaged: not worth mentioning
            continue
    if not found:
        return ""
    return f" Here from before: revision {shown(found[-1])}; name it, and it is used without a network."


class _Client:
    """One gist at GitHub, and what can go wrong with it, in words."""

    def __init__(self, gist_id: str, revision: str) -> None:
        self.root, self.token = _root(), _token()
        self.gist_id, self.revision = gist_id, revision
        self.session = requests.Session()
        # Retry-After is for people: GitHub's can be an hour, and a notebook that sleeps an hour looks broken.
        retry = Retry(total=TRIES - 1, redirect=0, backoff_factor=BACKOFF, status_forcelist=(500, 502, 503, 504),
                      allowed_methods=("GET",), raise_on_status=False, respect_retry_after_header=False)  # fmt: skip
        for scheme in ("https://", "http://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=retry))

    def gist(self) -> dict[str, Any]:
        """The API's entry, with `files` and the `history` whose first entry is the newest."""
        url = "/".join(filter(None, (self.root.geturl().rstrip("/"), "gists", self.gist_id, self.revision)))
        data, kind = self._get(url, MAX_ANSWER)
        try:
            gist = json.loads(data)
        except (ValueError, RecursionError):
            raise SourceError(
                f"{self.root.hostname} answered with {shown(kind) or 'something'} instead of JSON: is there a proxy or "
                "a login page in between? Open the address in a browser, then try again."
            ) from None
        try:
            version = self.revision or gist["history"][0]["version"]
            usable = REVISION.fullmatch(version) and all(isinstance(file, dict) for file in gist["files"].values())
        except (TypeError, KeyError, IndexError, AttributeError):
            usable = None
        if not usable:
            raise SourceError(f"{self.root.hostname} answered with JSON that is no gist. Is GITHUB_API_URL right?")
        return gist  # type: ignore[no-any-return]

    def file(self, name: str, entry: dict[str, Any]) -> bytes:
        """The bytes of one file: from the entry, or from `raw_url` where the entry holds only a part."""
        size, content = entry.get("size"), entry.get("content")
        if isinstance(size, int) and size > MAX_BYTES:
            raise SourceError(f"{name} in gist {self.gist_id} has {size:,} bytes; at most {MAX_BYTES:,} are read.")
        if isinstance(content, str) and not entry.get("truncated"):
            data = content.encode("utf-8", "surrogatepass")
            if size in (None, len(data)):
                return data
        # Cut short, or not text as it stands in JSON: the raw file has the bytes themselves.
        data, _ = self._get(str(entry.get("raw_url") or ""), MAX_BYTES)
        if size not in (None, len(data)):
            raise SourceError(
                f"{name} in gist {self.gist_id} arrived with {len(data):,} bytes instead of {size:,}. Try again."
            )
        return data

    def _get(self, url: str, most: int) -> tuple[bytes, str]:
        """Body and content type of an answer, following redirects between allowed hosts only."""
        for _ in range(REDIRECTS + 1):
            self._allow(url)
            answer, body = self._one(url, most)
            if not answer.is_redirect:
                if answer.status_code != 200:
                    raise self._refusal(answer)
                return body, answer.headers.get("Content-Type", "").split(";")[0]
            url = urljoin(url, answer.headers["Location"])
        raise SourceError(f"{self.root.hostname} redirects in circles. Is GITHUB_API_URL right?")

    def _allow(self, url: str) -> None:
        target = _url(url)
        hosts = target.hostname in (self.root.hostname, RAW) or (_loopback(self.root) and _loopback(target))
        if not hosts or not (target.scheme == "https" or (target.scheme == "http" and _loopback(target))):
            where = shown(f"{target.scheme}://{target.hostname}") if target.hostname else "nowhere"
            raise SourceError(
                f"gist {self.gist_id} leads to {where}, which is not asked: "
                f"files come from {self.root.hostname} and {RAW} only."
            )

    def _one(self, url: str, most: int) -> tuple[requests.Response, bytes]:
        """One request, no redirects. What breaks before the body is tried again by urllib3, a broken body here."""
        for wait in range(TRIES):
            try:
                answer = self.session.get(
                    url, auth=self._auth(url), timeout=TIMEOUT, stream=True, allow_redirects=False,
                    headers={"Accept": "application/vnd.github+json", "User-Agent": "transformer-builder-templates"},
                )  # fmt: skip
            except requests.RequestException as error:
                raise self._unreachable(url, error) from None  # its text can hold a proxy's password
            try:
                return answer, self._body(answer, most)
            except requests.RequestException as error:
                if wait == TRIES - 1:
                    raise self._unreachable(url, error) from None
                time.sleep(BACKOFF * 2**wait)
            finally:
                answer.close()
        raise AssertionError("unreachable")

    def _body(self, answer: requests.Response, most: int) -> bytes:
        body, start = bytearray(), time.monotonic()
        for part in answer.iter_content(65_536):
            body += part
            if len(body) > most:
                raise SourceError(f"gist {self.gist_id}: an answer of more than {most:,} bytes, which is not read.")
            if time.monotonic() - start > LONGEST:
                raise SourceError(f"gist {self.gist_id}: the answer took longer than {LONGEST:.0f} s. Try again later.")
        return bytes(body)

    def _auth(self, url: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
        """The token, for the API's own host, port and scheme only. Being set at all, it keeps .netrc out of this."""
        own = urlsplit(url)[:2] == self.root[:2]

        def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if self.token and own:
                request.headers["Authorization"] = f"Bearer {self.token}"
            return request

        return sign

    def _unreachable(self, url: str, error: Exception) -> SourceError:
        host = _url(url).hostname
        reason = getattr(error.args[0] if error.args else None, "reason", None)
        if isinstance(error, requests.exceptions.SSLError):
            said = f"the certificate of {host} cannot be checked: is there a proxy in between, or is the clock wrong?"
        elif isinstance(error, requests.exceptions.ProxyError):
            said = f"the proxy does not lead to {host}: see HTTPS_PROXY."
        elif isinstance(error, requests.Timeout) or isinstance(reason, ReadTimeoutError):
            said = f"{host} did not answer in time ({TRIES} tries). Try again later."
        elif isinstance(error, requests.exceptions.ChunkedEncodingError):
            said = f"{host} broke off in the middle of its answer ({TRIES} tries). Try again later."
        else:
            said = f"no connection to {host} ({TRIES} tries). Is there a network? A pinned revision works without."
        return SourceError(f"gist {self.gist_id}: {said}")

    def _refusal(self, answer: requests.Response) -> SourceError:
        """What a status other than 200 means. The server's own words are left out: they can repeat what was sent."""
        status, head = answer.status_code, answer.headers
        named = f"gist {self.gist_id}" + (f" at revision {self.revision}" if self.revision else "")
        if status == 401:
            said = "GITHUB_TOKEN is not valid (401): make a new one, or unset it; public gists need none."
        elif status == 429 or (status == 403 and (head.get("X-RateLimit-Remaining") == "0" or "Retry-After" in head)):
            said = f"GitHub's rate limit is used up ({status}){_reset(head)}."
            said += " Wait until then." if self.token else " Wait, or set GITHUB_TOKEN, which raises the limit."
        elif status in (404, 422):
            slip = "id or the revision" if self.revision else "id"
            said = f"not found ({status}): deleted, private, or a slip in the {slip}."
        elif status >= 500:
            said = f"GitHub answered {status} {TRIES} times: a fault on its side. Try again later."
        else:
            said = f"GitHub refused it ({status})."
        return SourceError(f"{named}: {said}")


def _reset(head: Any) -> str:
    """When a rate limit ends, in local time; "" where the answer does not say."""
    try:
        wait = float(head["Retry-After"]) if "Retry-After" in head else float(head["X-RateLimit-Reset"]) - time.time()
        at = time.localtime(time.time() + wait)
    except (KeyError, ValueError, OverflowError, OSError):
        return ""
    return f" until {time.strftime('%H:%M:%S', at)} (in {max(1, round(wait / 60))} min)"


def _root() -> SplitResult:
    url = urlsplit((os.environ.get("GITHUB_API_URL") or API).strip())
    if not url.hostname or url.username or not (url.scheme == "https" or (url.scheme == "http" and _loopback(url))):
        raise SourceError(f"GITHUB_API_URL={shown(url.geturl())} is no root of an API: give one like {API}")
    return url


def _hosts() -> tuple[str | None, ...]:
    """Where the pages, raw files and API entries of gists are."""
    return PAGES, RAW, urlsplit(API).hostname, _root().hostname


def _token() -> str:
    token = os.environ.get("GITHUB_TOKEN", "").strip()
    if not re.fullmatch(r"[\w.~+/=-]*", token, re.ASCII):  # requests would show it in its own message
        raise SourceError("GITHUB_TOKEN holds a character that no token has: copy it again, or unset it.")
    return token


def _url(text: str) -> SplitResult:
    """A URL's parts; a known host may come without its scheme. Nothing for what is no URL."""
    if re.match(rf"(git@)?({re.escape(PAGES)}|{re.escape(RAW)})[:/]", text):
        text = "https://" + text.removeprefix("git@").replace(":", "/", 1)
    try:
        url = urlsplit(text)
        return url if url.scheme in ("http", "https") else SplitResult("", "", "", "", "")
    except ValueError:  # such as half an IPv6 address
        return SplitResult("", "", "", "", "")


def _loopback(url: SplitResult) -> bool:
    try:
        return url.hostname == "localhost" or ipaddress.ip_address(url.hostname or "").is_loopback
    except ValueError:
        return False
