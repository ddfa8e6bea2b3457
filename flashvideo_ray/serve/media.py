"""Media of the run over HTTP: ETags, conditional requests and byte ranges (RFC 9110), from any store."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from flashvideo_ray.ledger.store import Store
from flashvideo_ray.serve.problems import Problem

_CHUNK = 2**20
_RANGE = re.compile(r"(\d{0,19})-(\d{0,19})")
# The address of an object does not change when it is made again, or when another run is served here: always ask.
_CACHING = "private, no-cache"


async def respond(request: Request, store: Store, key: str, media_type: str) -> Response:
    """The object, a range of it, or that it has not changed. Raises Problem 404 and 416."""
    try:
        info = await asyncio.to_thread(store.fs.info, store.path(key))
    except FileNotFoundError:
        raise Problem(404, "It is not in the store.") from None
    size: int = info["size"]
    tag = etag(f"{size}/{info.get('ETag') or info.get('mtime') or info.get('LastModified')}")
    headers = {"ETag": tag, "Cache-Control": _CACHING, "Accept-Ranges": "bytes"}
    if not_modified(request, tag):
        return Response(status_code=304, headers=headers)
    start, stop, status = 0, size, 200
    unit, _, asked = request.headers.get("range", "").partition("=")
    # Another unit than bytes, and a range that comes with another method than GET, are as good as not there.
    ranged = request.method == "GET" and unit.strip().lower() == "bytes"
    if ranged and request.headers.get("if-range", tag) == tag:
        start, stop = _range(asked, size)
        status = 206
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    headers["Content-Length"] = str(stop - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    return StreamingResponse(_read(store, key, start, stop), status, headers, media_type)


def etag(text: str | bytes) -> str:
    """A strong ETag of what the text stands for."""
    data = text.encode() if isinstance(text, str) else text
    return f'"{hashlib.sha256(data).hexdigest()[:24]}"'


def not_modified(request: Request, tag: str) -> bool:
    """Whether the caller has this version already."""
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    return tag in known or known == ["*"]


def _range(asked: str, size: int) -> tuple[int, int]:
    """Start and stop of the one range that is asked for. Several at once, or none of the object, is Problem 416."""
    found = _RANGE.fullmatch(asked.strip())
    first, last = found.groups() if found else ("", "")
    if first:
        start, stop = int(first), min(int(last) + 1 if last else size, size)
    else:
        start, stop = max(0, size - int(last or 0)), size
    if start >= stop:
        raise Problem(416, "Ask for one range within the object.", headers={"Content-Range": f"bytes */{size}"})
    return start, stop


async def _read(store: Store, key: str, start: int, stop: int) -> AsyncIterator[bytes]:
    """The bytes, a piece at a time: a clip need not be in memory whole."""
    for at in range(start, stop, _CHUNK):
        yield await asyncio.to_thread(_piece, store, key, at, min(at + _CHUNK, stop))


def _piece(store: Store, key: str, start: int, stop: int) -> Any:
    return store.fs.cat_file(store.path(key), start=start, end=stop)
