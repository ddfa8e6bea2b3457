"""What changed, for pages that watch: the last events in memory, and a stream of them for each watcher."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from flashvideo_ray.serve.problems import Problem, problem_response

WATCHERS = 200  # at once, of one hub
HEARTBEAT_SECONDS = 15.0
_KEPT = 2000


@dataclass(frozen=True)
class _Event:
    number: int
    name: str
    data: str


class Hub:
    """Events in the order in which they happened. Ids hold a mark of this process: another one's are not continued."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex[:8]
        self._events: deque[_Event] = deque(maxlen=_KEPT)
        self._last = 0
        self._changed = asyncio.Event()
        self.watchers = 0

    def tell(self, name: str, data: Any) -> None:
        """Add an event."""
        self._last += 1
        self._events.append(_Event(self._last, name, json.dumps(data, separators=(",", ":"))))
        self._changed.set()
        self._changed = asyncio.Event()

    async def stream(self, last_event_id: str | None = None) -> AsyncIterator[str]:
        """Events as text/event-stream, from the one after `last_event_id`, or from now on.

        A watcher that has missed more than is kept is told to `reload`.
        """
        mark, _, number = (last_event_id or "").partition("-")
        seen = int(number) if mark == self._mark and number.isdecimal() else None
        yield self._text("hello", "{}", self._last if seen is None else seen)
        if last_event_id and seen is None:
            yield self._text("reload", "{}", self._last)
        seen = self._last if seen is None else seen
        while True:
            if self._events and seen + 1 < self._events[0].number:
                seen = self._last
                yield self._text("reload", "{}", seen)
            changed = self._changed
            for event in [event for event in self._events if event.number > seen]:
                yield self._text(event.name, event.data, event.number)
                seen = event.number
            try:
                await asyncio.wait_for(changed.wait(), HEARTBEAT_SECONDS)
            except TimeoutError:
                yield ": still here\n\n"

    def _text(self, name: str, data: str, number: int) -> str:
        return f"id: {self._mark}-{number}\nevent: {name}\ndata: {data}\n\n"


class Watched(StreamingResponse):
    """A hub's stream as an answer, or 503 where too many watch already.

    The place is taken and given back around the whole answer: between a question for a free place and a stream that
    begins, others could come; and a stream whose client leaves before it begins never ends.
    """

    def __init__(self, hub: Hub, last_event_id: str | None = None):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(hub.stream(last_event_id), media_type="text/event-stream", headers=headers)
        self.hub = hub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if self.hub.watchers >= WATCHERS:
            full = Problem(503, "Too many are watching.", headers={"Retry-After": "30"})
            return await problem_response(full)(scope, receive, send)
        self.hub.watchers += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.hub.watchers -= 1
