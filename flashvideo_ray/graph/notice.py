"""What a person who is not there is told of a job: that it ended, stands still, fails, or has spent nearly all it may.

A notice is JSON, posted to a URL or given to a command on its standard input. Whoever is told may be away: a notice is
tried a few times and then dropped, and no job waits for it, or fails of it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from flashvideo_ray.accounting.terminal import duration, percent
from flashvideo_ray.errors import in_a_line
from flashvideo_ray.graph.tracker import StageState
from flashvideo_ray.settings import NotifySettings, Stage

Event = Literal["end", "stall", "budget", "failures"]
_PAUSES = (0.0, 1.0, 4.0)  # seconds before each try
_TRY_SECONDS = 10.0
LAST_SECONDS = 15.0  # that the end of a job waits for notices that are on their way
_FEW = 20  # candidates; a rate of fewer says nothing
log = logging.getLogger("flashvideo_ray")


class Notifier:
    """Tells, or does nothing where the settings name nobody. Nothing here raises."""

    def __init__(
        self,
        settings: NotifySettings | None,
        output: str,
        shard: str | None = None,
        pauses: Sequence[float] = _PAUSES,
    ):
        self.output, self.shard = output, shard
        self._settings, self._pauses = settings, pauses
        self._threads: list[threading.Thread] = []

    def tell(self, event: Event, text: str, facts: Mapping[str, Any] | None = None) -> None:
        """Begin to tell. `text` is one line for people, under the names that chat tools read."""
        if self._settings is None:
            return
        line = f"{self.output}{'' if self.shard is None else f', shard {self.shard}'}: {text}"
        message = {"event": event, "text": line, "content": line, "output": self.output, "shard": self.shard}
        message |= facts or {}
        body = json.dumps(message, default=str).encode()
        thread = threading.Thread(target=self._send, args=[event, body], daemon=True)
        thread.start()
        self._threads.append(thread)

    def close(self, seconds: float = LAST_SECONDS) -> None:
        """Wait for so long until all is told, or dropped."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _send(self, event: Event, body: bytes) -> None:
        error: Exception | None = None
        for pause in self._pauses:
            time.sleep(pause)
            try:
                return self._try(body)
            except Exception as trouble:  # of a server, a network, a shell
                error = trouble
        if error is not None:
            log.warning("notify: nobody was told of the event %s: %s", event, in_a_line(error))

    def _try(self, body: bytes) -> None:
        assert self._settings is not None
        if self._settings.command is not None:
            command = ["sh", "-c", self._settings.command]
            subprocess.run(command, input=body, timeout=_TRY_SECONDS, check=True, stdout=subprocess.DEVNULL)
            return
        url = str(self._settings.url)
        if url.startswith("env:"):
            url = os.environ[url.removeprefix("env:")]
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=_TRY_SECONDS):
            pass


class Watch:
    """Looks at the stages again and again, and tells of what should wake somebody; of each thing once.

    A stall may be told again after something went on. `clock` gives seconds.
    """

    def __init__(
        self, settings: NotifySettings | None, notifier: Notifier, clock: Callable[[], float] = time.monotonic
    ):
        self._settings, self._notifier, self._clock = settings, notifier, clock
        self._done, self._moved = -1, clock()
        self._told: set[Event] = set()

    def look(
        self, states: Mapping[Stage, StageState], ended: Mapping[str, int], spent: tuple[float, str] | None = None
    ) -> None:
        """`ended` are candidates by status; `spent` the share of the budget, and the budget in words."""
        own = self._settings
        if own is None:
            return
        done = sum(state.done for state in states.values()) + sum(ended.values())
        if done != self._done:
            self._done, self._moved = done, self._clock()
            self._told.discard("stall")
        silent = self._clock() - self._moved
        if silent >= own.stall_seconds:
            open_ = {stage: state.open for stage, state in states.items() if state.open}
            at = ", ".join(f"{stage} {count}" for stage, count in open_.items()) or "none"
            text = f"stands still: nothing has ended for {duration(silent)} (calls under way: {at})"
            self._once("stall", text, ended, {"silent_seconds": round(silent), "open": open_})
        failed, all_ = ended.get("failed", 0), sum(ended.values())
        if all_ >= _FEW and failed / all_ > own.failure_rate:
            text = f"{failed} of {all_} candidates failed ({percent(failed / all_)}, the limit is "
            text += f"{percent(own.failure_rate)}); `flashvideo-ray status {self._notifier.output}`"
            self._once("failures", text, ended, {"failure_rate": round(failed / all_, 4)})
        if spent is not None and spent[0] >= own.budget_share:
            self._once("budget", f"{percent(spent[0])} of {spent[1]} are spent", ended, {"spent_share": spent[0]})

    def _once(self, event: Event, text: str, ended: Mapping[str, int], facts: Mapping[str, Any]) -> None:
        if event not in self._told:
            self._told.add(event)
            self._notifier.tell(event, text, {"counts": dict(ended), **facts})
