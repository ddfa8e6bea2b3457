"""A hub on this machine, as far as huggingface_hub needs one to list and to read the files of one dataset."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

_COMMIT = "0" * 39 + "1"


@contextmanager
def serve_dataset(repo: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """The address of a hub that has this dataset."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            folders = {name.rpartition("/")[0] for name in files}
            if path in (f"/api/datasets/{repo}", f"/api/datasets/{repo}/revision/main"):
                self._json({"id": repo, "sha": _COMMIT, "private": False, "tags": [], "siblings": []})
            elif path.startswith(f"/api/datasets/{repo}/tree/"):
                below = path.removeprefix(f"/api/datasets/{repo}/tree/").partition("/")[2]
                start = f"{below}/" if below else ""
                entries = [_entry(name, data) for name, data in files.items() if name.startswith(start)]
                entries += [
                    {"type": "directory", "oid": "0", "size": 0, "path": name} for name in folders - {"", below}
                ]
                self._json(entries)
            elif path.startswith(f"/datasets/{repo}/resolve/"):
                self._file(files.get(path.removeprefix(f"/datasets/{repo}/resolve/").partition("/")[2]))
            else:
                self._json({"error": "not found"}, 404)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            names = {unquote(part.partition("=")[2].replace("+", " ")) for part in asked.split("&")}
            if asked.startswith("{"):
                names = set(json.loads(asked).get("paths", []))
            self._json([_entry(name, data) for name, data in files.items() if name in names])

        def _json(self, value: Any, status: int = 200) -> None:
            self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

        def _file(self, data: bytes | None) -> None:
            if data is None:
                return self._json({"error": "not found"}, 404)
            about = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": _COMMIT}
            first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
            if first:
                part = data[int(first) : int(last) + 1 if last else None]
                span = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
                return self._send(part, 206, {**about, "Content-Range": span})
            return self._send(data, 200, about)

        def _send(self, data: bytes, status: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _entry(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": name}
