"""The Hub's own libraries, made quiet, resumable and clear in their errors; knows nothing of documents."""

import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, of how much (0 = unknown)

CHUNK = 16 << 20  # bytes of one request: what a broken connection costs at most
WORKERS = 4  # files that are fetched at a time
TRIES = 3  # in a row that bring nothing, each with the client's own retries, before a download is given up
WAIT = 0.5  # seconds before the second try; then twice as long each time
NO_NETWORK = {
    "TransportError", "ConnectionError", "Timeout", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "TimeoutError",
    "MaxRetryError",
}  # fmt: skip


class Unreachable(ValueError):
    """The Hub does not answer: what is not in the cache cannot be had now."""


def datasets_library() -> Any:
    """The `datasets` package. Raises ValueError with the pip line where it is missing."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"data.source=hub needs the datasets library: pip install datasets (it cannot be imported: {error})"
        ) from None
    return datasets


@contextmanager
def talking_to_hub(name: str, revision: str = "") -> Iterator[Any]:
    """The `datasets` library, silent meanwhile; what goes wrong leaves as a ValueError that says what to do."""
    datasets = datasets_library()
    import huggingface_hub
    from huggingface_hub import utils as hub

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    levels = datasets.logging.get_verbosity(), hub.logging.get_verbosity()
    bars = datasets.are_progress_bars_disabled(), hub.are_progress_bars_disabled()  # type: ignore[attr-defined]
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    hub.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    hub.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield datasets
    except ValueError as error:
        if type(error) in (ValueError, Unreachable) and str(error).startswith("data."):  # ours
            raise
        raise in_words(error, name, revision) from error
    except Exception as error:  # both libraries raise many kinds without a common base
        raise in_words(error, name, revision) from error
    finally:
        datasets.logging.set_verbosity(levels[0])
        hub.logging.set_verbosity(levels[1])
        if not bars[0]:
            datasets.enable_progress_bars()
        if not bars[1]:
            hub.enable_progress_bars()  # type: ignore[attr-defined]


def in_words(error: BaseException, name: str, revision: str) -> ValueError:
    """What went wrong with the dataset `name`, and what to do about it."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
    status = next((answer.status_code for link in chain if (answer := getattr(link, "response", None)) is not None), 0)
    at, page, has_token = f"data.name={name}", f"{endpoint()}/datasets/{name}", bool(os.environ.get("HF_TOKEN"))
    said = " ".join(map(str, chain))

    if "GatedRepoError" in kinds:
        return ValueError(
            f"{at} is gated: accept its terms at {page}, then set HF_TOKEN to a token of that account"
            + (" (the HF_TOKEN that is set has no access to it)" if has_token else "")
        )
    if "RevisionNotFoundError" in kinds:
        return ValueError(f"{at} has no revision {revision}: its commits, branches and tags are listed at {page}")
    if status == 401 and "Invalid username or password" in said:
        return ValueError(f"{at}: the Hub does not know this HF_TOKEN: it is misspelt or was withdrawn")
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"} or status in (401, 403, 404):
        token = "that account's HF_TOKEN may read it" if has_token else "set HF_TOKEN to a token that may read it"
        return ValueError(f"{at}: there is no such dataset, or it is private: look at {page}; in that case, {token}")
    if status == 429:
        return ValueError(f"{at}: the Hub answers 429, too many requests: wait a few minutes, or set HF_TOKEN")
    if status >= 500:
        return ValueError(f"{at}: the Hub answers {status}: try again later")
    if "scripts are no longer supported" in said:
        return script_refused(name)
    if kinds & NO_NETWORK:
        why = "HF_HUB_OFFLINE is set" if "OfflineModeIsEnabled" in kinds else "no answer"
        return Unreachable(f"{at}: {endpoint()} cannot be reached ({why})")
    if "o space left" in said or "ot enough disk space" in said:
        return ValueError(f"{at}: {_first(error)}. {FREE_DISK}")
    return ValueError(f"{at}: datasets cannot read it: {_first(error)}" + _beneath(chain))


FREE_DISK = (
    "Free some disk, set HF_HOME to a folder on a larger one, or take a part: data.streaming=true data.max_documents=N"
)


def script_refused(name: str) -> ValueError:
    """What is said of a dataset that only its own Python code can read."""
    return ValueError(
        f"data.name={name} is read by Python code of its own, which is never run: choose one that "
        "is data files, or, if the Hub has converted it to parquet, say data.revision=refs/convert/parquet"
    )


def endpoint() -> str:
    """Where the Hub is."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def fetch(name: str, revision: str, paths: list[str], progress: Progress | None, chunk: int = CHUNK) -> None:
    """Download files of a dataset into the Hub's own cache, going on where an earlier download broke off.

    huggingface_hub itself goes on within one call, and begins a file anew in the next; so a large file is read here,
    range by range, into `<hash>.part` beside its place, and moved there when its sha256 is right.

    Raises ValueError: the disk is too small, a file arrived damaged, or the connection broke (it says at which byte).
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    found: list[Any] = []
    for i in range(0, len(paths), 500):
        found += api.get_paths_info(name, paths[i : i + 500], revision=revision, repo_type="dataset")
    blobs = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    large = [(entry, entry.lfs.sha256) for entry in found if entry.lfs and entry.size > 0]
    missing = {digest: entry.size for entry, digest in large if not (blobs / digest).exists()}
    free = shutil.disk_usage(blobs).free + sum(part.stat().st_size for part in blobs.glob("*.part"))
    if free < sum(missing.values()):
        raise ValueError(
            f"data.name={name}: {sum(missing.values()) / 1e9:,.1f} GB are to be downloaded, and {free / 1e9:,.1f} GB "
            f"are free at {blobs}. {FREE_DISK}"
        )
    told = _Told(progress, f"downloading {name}", sum(entry.size for entry in found))

    def one(entry: Any) -> None:
        digest = entry.lfs.sha256 if entry.lfs else ""
        if digest in missing:
            _fetch_blob(name, revision, entry.path, entry.size, blobs / digest, chunk, told)
        elif entry.size:
            told.more(entry.size)
        api.hf_hub_download(name, entry.path, repo_type="dataset", revision=revision)  # its name for the bytes

    with ThreadPoolExecutor(WORKERS) as pool:
        jobs = [pool.submit(one, entry) for entry in found]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Told:
    """Bytes that have arrived, told one at a time whichever thread they came by."""

    def __init__(self, progress: Progress | None, doing: str, total: int) -> None:
        self.progress, self.doing, self.total, self.done, self.lock = progress, doing, total, 0, threading.Lock()

    def more(self, size: int) -> None:
        with self.lock:
            self.done += size
            if self.progress:
                self.progress(self.doing, self.done, self.total)


def _fetch_blob(name: str, revision: str, path: str, size: int, blob: Path, chunk: int, told: _Told) -> None:
    """One file, range by range, to `blob`, whose name is its sha256. Processes that fetch the same wait in line."""
    from huggingface_hub import HfFileSystem

    part = blob.with_name(blob.name + ".part")
    with part.open("a+b") as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        if blob.exists():  # another process was faster
            part.unlink(missing_ok=True)
            return told.more(size)
        told.more(done := out.seek(0, os.SEEK_END))
        remote = HfFileSystem().open(
            f"datasets/{name}@{revision}/{path}", "rb", block_size=chunk, cache_type="none", size=size
        )
        tries = 0
        while done < size:
            try:
                remote.seek(done)
                data = remote.read(min(chunk, size - done))
            except Exception as error:  # whatever the client's version calls a connection that broke
                tries += 1
                if tries == TRIES or getattr(getattr(error, "response", None), "status_code", 0) in (401, 403, 404):
                    raise ValueError(
                        f"data.name={name}: the download of {path} broke off at {done:,} of {size:,} bytes "
                        f"({_first(error)}): do the same again, it goes on from there"
                    ) from error
                time.sleep(WAIT * 2 ** (tries - 1))
                continue
            tries = 0
            out.write(data)
            out.flush()
            done += len(data)
            told.more(len(data))
        os.fsync(out.fileno())
        out.seek(0)
        if hashlib.file_digest(out, "sha256").hexdigest() != blob.name:
            part.unlink()
            raise ValueError(f"data.name={name}: {path} arrived damaged (its sha256 is wrong): do the same again")
        os.replace(part, blob)
    return None


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _beneath(chain: list[BaseException]) -> str:
    """The innermost reason, where the outermost one hides it."""
    deepest = _first(chain[-1])
    return "" if deepest in _first(chain[0]) else f" ({deepest})"
