"""A Hugging Face Hub of datasets on loopback, as `datasets` sees one; knows nothing of this project's code.

>>> with DatasetHub() as hub:
...     hub.put_dataset("owner/name", {"default": {"train": ["a text", "another"], "test": [{"text": "a third"}]}})
...     subprocess.run([...], env=hub.environment(tmp_path))
"""

import email.parser
import email.policy
import hashlib
import io
import json
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".parquet", ".gz", ".zst", ".arrow")  # kept as the real Hub does: with a sha256, which is the ETag too
Rows = Sequence[str | dict[str, Any]]


@dataclass
class Request:
    """One line of the server's log; `status` is 0 until it is answered."""

    method: str
    path: str
    range: str = ""
    status: int = 0


class DatasetHub(ThreadingHTTPServer):
    """Serves `repos[name][commit] = {file: bytes}`; `main` is the commit put last.

    `seen`: every request. `tokens`: who may read `private` and `gated` datasets. `broken`: a status that everything
    answers. `cut[file] = [n, ...]`: the next answers with this file end after n bytes of it (from its beginning).
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.seen: list[Request] = []
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.tokens: set[str] = set()
        self.cut: dict[str, list[int]] = {}
        self.broken = 0
        self.open: set[socket.socket] = set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def put_files(self, repo: str, files: Mapping[str, bytes]) -> str:
        """A new commit that holds exactly these files; its name."""
        commits = self.repos.setdefault(repo, {})
        commit = hashlib.sha1(f"{repo}{len(commits)}".encode()).hexdigest()
        commits[commit] = commits["main"] = dict(files)
        return commit

    def put_dataset(self, repo: str, configs: Mapping[str, Mapping[str, Rows]], files: int = 1, form: str = "parquet",
                    default: str = "", features: Any = None) -> str:  # fmt: skip
        """A new commit with these rows ({config: {split: rows}}; a str is a row of one column, text); its name.

        Arguments:
            files: how many data files each split is cut into.
            form: parquet or jsonl.
            default: the configuration that is meant where none is named, if not one called "default".
            features: `datasets.Features` to be written into the parquet files.
        """
        out: dict[str, bytes] = {}
        card = ["---", "configs:"]
        for config, splits in configs.items():
            card += [f"- config_name: {config}", *(["  default: true"] if config == default else []), "  data_files:"]
            for split, rows in splits.items():
                card += [f"  - split: {split}", f"    path: {config}/{split}-*"]
                table = [{"text": row} if isinstance(row, str) else row for row in rows]
                parts = max(1, min(files, len(table)))  # `datasets` cannot read a file without rows
                for i in range(parts):
                    piece = table[len(table) * i // parts : len(table) * (i + 1) // parts]
                    data = parquet(piece, features) if form == "parquet" else jsonl(piece)
                    out[f"{config}/{split}-{i:05d}-of-{parts:05d}.{form}"] = data
        out["README.md"] = "\n".join([*card, "---", f"# {repo}", ""]).encode()
        return self.put_files(repo, out)

    def environment(self, home: Path, token: str = "", **more: str) -> dict[str, str]:
        """The environment of a process that shall see this Hub, with its caches below `home`."""
        own = {k: value for k, value in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        own |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home / "hf"), "TBT_CACHE": str(home / "tbt")}
        return own | ({"HF_TOKEN": token} if token else {}) | more

    def asked(self, part: str = "", method: str = "GET") -> list[Request]:
        """The requests whose path holds `part`."""
        return [request for request in list(self.seen) if part in request.path and request.method == method]

    def stop(self) -> None:
        """No more answers: as if there were no network."""
        self.shutdown()
        self.server_close()
        for connection in list(self.open):  # that a client would use again
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "DatasetHub":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: DatasetHub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        with suppress(OSError):  # the other end, or this server, has hung up
            super().finish()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.request_line = Request(self.command, path, self.headers.get("Range", ""))
        self.server.seen.append(self.request_line)
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.broken:
            return self.send(self.server.broken, {"error": "no"})
        match path.split("/"):
            case ["api", "datasets", owner, name]:
                return self.found(f"{owner}/{name}", "main", self.info)
            case ["api", "datasets", owner, name, "revision", revision]:
                return self.found(f"{owner}/{name}", revision, self.info)
            case ["api", "datasets", owner, name, "auth-check"]:
                return self.found(f"{owner}/{name}", "main", lambda *_: self.send(200, {}), locked=True)
            case ["api", "datasets", owner, name, "tree", revision, *folder]:
                return self.found(f"{owner}/{name}", revision, lambda *at: self.tree(*at, "/".join(folder)))
            case ["api", "datasets", owner, name, "paths-info", revision]:
                return self.found(f"{owner}/{name}", revision, lambda *at: self.paths_info(*at, sent))
            case ["datasets", owner, name, "resolve", revision, *file]:
                return self.found(f"{owner}/{name}", revision, lambda *at: self.file(*at, "/".join(file)), locked=True)
        return self.send(404, {"error": "Not Found"})

    do_HEAD = do_POST = do_GET

    def found(self, repo: str, revision: str, then: Any, locked: bool = False) -> None:
        """Answer with `then(repo, commit, files)`, or say why not; `locked`: refused where a dataset is gated."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        if token and token not in self.server.tokens:
            return self.send(401, {"error": "Invalid username or password."})
        commits = self.server.repos.get(repo)
        if commits is None or (repo in self.server.private and not token):
            return self.fail(404 if token else 401, "RepoNotFound", "Repository not found")
        if locked and repo in self.server.gated and not token:
            return self.fail(401, "GatedRepo", f"Access to dataset {repo} is restricted.")
        if revision not in commits:
            return self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        commit = next(name for name, files in commits.items() if files is commits[revision] and name != "main")
        return then(repo, commit, commits[commit])

    def info(self, repo: str, commit: str, files: dict[str, bytes]) -> None:
        siblings = [{"rfilename": name, **self.blob(name, data)} for name, data in files.items()]
        self.send(200, {"_id": "1", "id": repo, "author": repo.split("/")[0], "sha": commit, "disabled": False,
                        "private": repo in self.server.private, "gated": "auto" if repo in self.server.gated else False,
                        "tags": [], "downloads": 0, "likes": 0, "siblings": siblings})  # fmt: skip

    def tree(self, repo: str, commit: str, files: dict[str, bytes], folder: str) -> None:
        base = f"{folder}/" if folder else ""
        deep = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
        found = [name for name in sorted(files) if name.startswith(base)]
        if base and not found:
            return self.fail(404, "EntryNotFound", f"{folder} does not exist")
        folders = set()
        for name in found:
            parts = name[len(base) :].split("/")
            folders |= {base + "/".join(parts[:i]) for i in range(1, len(parts) if deep else min(2, len(parts)))}
        listed = [name for name in found if deep or "/" not in name[len(base) :]]
        return self.send(200, [*map(self.folder, sorted(folders)), *(self.entry(name, files[name]) for name in listed)])

    def paths_info(self, repo: str, commit: str, files: dict[str, bytes], sent: bytes) -> None:
        out = []
        for path in asked_paths(self.headers.get("Content-Type", ""), sent):
            if path in files:
                out.append(self.entry(path, files[path]))
            elif any(name.startswith(path + "/") for name in files):
                out.append(self.folder(path))
        self.send(200, out)

    def folder(self, path: str) -> dict[str, Any]:
        return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}

    def entry(self, path: str, data: bytes) -> dict[str, Any]:
        return {"type": "file", "path": path, "oid": git_oid(data), **self.blob(path, data)}

    def blob(self, name: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        large = {"sha256": digest, "oid": digest, "size": len(data), "pointerSize": 130}
        return {"size": len(data), "blobId": git_oid(data)} | ({"lfs": large} if name.endswith(LARGE) else {})

    def file(self, repo: str, commit: str, files: dict[str, bytes], name: str) -> None:
        data = files.get(name)
        if data is None:
            return self.fail(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        large = name.endswith(LARGE)
        etag = hashlib.sha256(data).hexdigest() if large else git_oid(data)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))} if large else {}
        first, last = 0, len(data) - 1
        if asked := self.headers.get("Range"):
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(start or len(data) - int(end)), min(int(end), last) if end and start else last
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        cuts = self.server.cut.get(name, [])
        stop = cuts.pop(0) if cuts and self.command == "GET" and first <= cuts[0] <= last else None
        stop = None if stop is None else stop - first
        return self.send(206 if asked else 200, data[first : last + 1], stop, **headers)

    def fail(self, status: int, code: str, message: str, **headers: str) -> None:
        self.send(status, {"error": message}, **{"X-Error-Code": code, "X-Error-Message": message}, **headers)

    def send(self, status: int, body: Any, stop: int | None = None, **headers: str) -> None:
        """Answer; `stop`: hang up after so many bytes of the body, though more were promised."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.request_line.status = status
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:stop])
        if stop is not None:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def asked_paths(kind: str, sent: bytes) -> list[str]:
    """The paths in the body of a paths-info request: JSON, a form, or a form in parts, by the client's version."""
    if "json" in kind:
        paths = json.loads(sent)["paths"]
    elif "multipart" in kind:
        head = f"Content-Type: {kind}\r\n\r\n".encode()
        whole = email.parser.BytesParser(policy=email.policy.default).parsebytes(head + sent)
        named = [(part.get_param("name", header="content-disposition"), part) for part in whole.iter_parts()]
        paths = [part.get_content() for name, part in named if name == "paths"]
    else:
        paths = parse_qs(sent.decode()).get("paths", [])
    return [path.strip("/") for path in ([paths] if isinstance(paths, str) else paths)]


def parquet(rows: Sequence[dict[str, Any]], features: Any = None) -> bytes:
    """Rows as a parquet file."""
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    table = pyarrow.Table.from_pylist(list(rows), schema=features.arrow_schema if features else None)
    pyarrow.parquet.write_table(table, out)
    return out.getvalue()


def jsonl(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows as lines of JSON."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def git_oid(data: bytes) -> str:
    """What git calls a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
