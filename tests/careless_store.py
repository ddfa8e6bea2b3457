"""A server that speaks a little S3, and does not know conditional puts: whoever writes last has written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@contextmanager
def serve_careless_s3() -> Iterator[str]:
    """Its endpoint. Keys of any kind are good; there is one bucket, of any name, and nothing can be listed in it."""
    objects: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            objects[self._key] = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(200)

        def do_GET(self) -> None:
            found = objects.get(self._key)
            if found is None and self._key.count("/") < 2:  # a list of what there is: nothing
                found = b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>"
            self._answer(404 if found is None else 200, found or b"")

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_DELETE(self) -> None:
            objects.pop(self._key, None)
            self._answer(204)

        @property
        def _key(self) -> str:
            return urlsplit(self.path).path

        def _answer(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("ETag", '"0"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
