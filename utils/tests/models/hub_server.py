"""A Hugging Face Hub on loopback, read only, as huggingface_hub's client sees one: info, tree, files. No torch."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Serves `repos["owner/name"][revision]`, a dict of file names and bytes; `main` is the last revision put.

    `seen` holds the paths asked for; `broken` is a status that everything answers; `gated` names repositories.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.seen: list[str] = []
        self.gated: set[str] = set()
        self.broken = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, repo: str, files: dict[str, bytes]) -> str:
        """A new commit on main; its name."""
        commits = self.repos.setdefault(repo, {})
        commit = hashlib.sha1(f"{repo}{len(commits)}".encode()).hexdigest()
        commits[commit] = commits["main"] = files
        return commit

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.seen.append(path)
        if self.server.broken:
            return self.send(self.server.broken, {"error": "no"})
        match path.split("/"):
            case ["api", "models", owner, name]:
                return self.found(f"{owner}/{name}", "main", self.info)
            case ["api", "models", owner, name, "revision", revision]:
                return self.found(f"{owner}/{name}", revision, self.info)
            case ["api", "models", owner, name, "tree", revision]:
                return self.found(f"{owner}/{name}", revision, self.tree)
            case [owner, name, "resolve", revision, *file]:
                return self.found(f"{owner}/{name}", revision, lambda *at: self.file(*at, "/".join(file)))
        return self.send(404, {"error": "Not Found"})

    do_HEAD = do_GET

    def found(self, repo: str, revision: str, then: Any) -> None:
        commits = self.server.repos.get(repo)
        if commits is None:
            return self.fail(401, "RepoNotFound")
        if repo in self.server.gated:
            return self.fail(403, "GatedRepo")
        if revision not in commits:
            return self.fail(404, "RevisionNotFound")
        commit = next(name for name, files in commits.items() if files is commits[revision] and name != "main")
        return then(repo, commit, commits[commit])

    def info(self, repo: str, commit: str, files: dict[str, bytes]) -> None:
        siblings = [{"rfilename": name, **self.blob(name, data)} for name, data in files.items()]
        self.send(200, {"_id": "1", "id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [],
                        "downloads": 0, "likes": 0, "siblings": siblings})  # fmt: skip

    def tree(self, repo: str, commit: str, files: dict[str, bytes]) -> None:
        self.send(200, [{"type": "file", "path": name, "oid": etag(data), **self.blob(name, data)}
                        for name, data in files.items()])  # fmt: skip

    def blob(self, name: str, data: bytes) -> dict[str, Any]:
        large = {"sha256": (digest := hashlib.sha256(data).hexdigest()), "oid": digest, "size": len(data),
                 "pointerSize": 130}  # fmt: skip
        return {"size": len(data), "blobId": etag(data)} | ({"lfs": large} if name.endswith(".safetensors") else {})

    def file(self, repo: str, commit: str, files: dict[str, bytes], name: str) -> None:
        if name not in files:
            return self.fail(404, "EntryNotFound")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag(files[name])}"'}
        return self.send(200, files[name], **headers)

    def fail(self, status: int, code: str) -> None:
        self.send(status, {"error": code}, **{"X-Error-Code": code, "X-Error-Message": code})

    def send(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
