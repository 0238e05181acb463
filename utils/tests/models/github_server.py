"""GitHub's gist API on loopback, as far as a reader of gists meets it, with faults to order. No torch."""

import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ID = "6cad326836d38bd3a7ae0123456789ab"
FIRST, SECOND = "a" * 40, "b" * 40
MODEL = "import torch\n\n\nclass Net(torch.nn.Module):\n    pass\n"
CONFIG = '{"vocab_size": 61}\n'
Fault = Callable[["Handler"], bool | None]


class GitHub(ThreadingHTTPServer):
    """Serves `gists[id][revision]`, a dict of file names and bytes whose last revision is the newest.

    `faults` are used up one by one, each by one request: a fault answers itself, or returns True to let the request
    pass. `seen` holds the path and Authorization header of every request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.gists: dict[str, dict[str, dict[str, bytes]]] = {}
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str | None]] = []
        self.truncated: set[str] = set()
        self.raw_root = ""
        self.sizes: dict[str, int] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, files: dict[str, str | bytes], revision: str = FIRST, gist_id: str = ID) -> None:
        """A new newest revision."""
        content = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
        self.gists.setdefault(gist_id, {})[revision] = content

    def __enter__(self) -> "GitHub":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: GitHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization")))
        if self.server.faults and not self.server.faults.pop(0)(self):
            return
        match self.path.strip("/").split("/"):
            case ["gists", gist_id, *revision] if gist_id in self.server.gists and len(revision) < 2:
                self.entry(gist_id, *revision)
            case ["raw", gist_id, revision, name]:
                self.send(200, self.server.gists[gist_id][revision][name], "text/plain")
            case _:
                self.send(404, {"message": "Not Found"})

    def entry(self, gist_id: str, revision: str = "") -> None:
        revisions = self.server.gists[gist_id]
        if revision and revision not in revisions:
            return self.send(404, {"message": "Not Found"})
        revision = revision or list(revisions)[-1]
        files = {}
        for name, data in revisions[revision].items():
            cut = name in self.server.truncated
            files[name] = {
                "filename": name, "size": self.server.sizes.get(name, len(data)), "truncated": cut,
                "raw_url": f"{self.server.raw_root or self.server.url}/raw/{gist_id}/{revision}/{name}",
                "content": data.decode(errors="replace")[: 7 if cut else None],
            }  # fmt: skip
        history = [{"version": version} for version in reversed(list(revisions))]
        return self.send(200, {"id": gist_id, "owner": {"login": "octocat"}, "files": files, "history": history})

    def send(self, status: int, body: Any, kind: str = "application/json", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def status(code: int, **headers: str) -> Fault:
    """An error, with headers (`_` for `-`)."""
    return lambda handler: handler.send(
        code, {"message": "no", "echo": handler.headers.get("Authorization")}, **headers
    )


def reset(handler: Handler) -> None:
    """The connection is torn down without an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RD)
    handler.connection.close()


def half(handler: Handler) -> None:
    """The answer ends in the middle of its body."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"files": ')
    handler.close_connection = True


def slow(seconds: float) -> Fault:
    """Nothing for a while, then the right answer."""
    return lambda handler: time.sleep(seconds) is None


def page(handler: Handler) -> None:
    """A login page in the place of an answer."""
    handler.send(200, b"<html>Sign in</html>", "text/html; charset=utf-8")


def answer(body: Any) -> Fault:
    """Any JSON."""
    return lambda handler: handler.send(200, body)


def redirect(url: str) -> Fault:
    """To another place."""
    return lambda handler: handler.send(302, {}, Location=url)


def sha(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()
