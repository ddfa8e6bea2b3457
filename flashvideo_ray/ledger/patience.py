"""A store that may be away for a while: a long run waits for it instead of failing its candidates."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from flashvideo_ray.ledger.store import Store

T = TypeVar("T")
# These will not be otherwise in a minute.
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
FIRST_DELAY, LONGEST_DELAY = 0.5, 15.0  # seconds
log = logging.getLogger("flashvideo_ray")


class PatientStore(Store):
    """Tries again, with growing pauses, for up to `patience_seconds`: a server that restarts, a disk that is full.

    An operation that still fails then raises the store's own error.
    """

    def __init__(self, url: str, patience_seconds: float):
        super().__init__(url)
        self.patience_seconds = patience_seconds

    def put(self, key: str, data: bytes) -> None:
        """See Store."""
        self._wait_for(lambda: Store.put(self, key, data), key)

    def get(self, key: str) -> bytes:
        """See Store."""
        return self._wait_for(lambda: Store.get(self, key), key)

    def exists(self, key: str) -> bool:
        """See Store."""
        return self._wait_for(lambda: Store.exists(self, key), key)

    def keys(self, folder: str = "", suffix: str = "") -> list[str]:
        """See Store."""
        return self._wait_for(lambda: Store.keys(self, folder, suffix), folder)

    def _wait_for(self, operation: Callable[[], T], key: str) -> T:
        deadline = time.monotonic() + self.patience_seconds
        delay = FIRST_DELAY
        while True:
            try:
                return operation()
            except FINAL:
                raise
            except Exception as error:  # each store has its own
                if time.monotonic() + delay > deadline:
                    raise
                log.warning("%s/%s: %s: %s; trying again", self.url, key, type(error).__name__, error)
            time.sleep(delay * random.uniform(0.5, 1.0))  # so that a hundred workers do not come back at once
            delay = min(2 * delay, LONGEST_DELAY)

    def __reduce__(self) -> tuple[type[PatientStore], tuple[str, float]]:  # type: ignore[override]
        return PatientStore, (self.url, self.patience_seconds)
