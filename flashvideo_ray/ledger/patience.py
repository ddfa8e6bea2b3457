"""A store that may be away for a while: a long run waits for it instead of failing its candidates."""

from __future__ import annotations

import copy
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self, TypeVar

from flashvideo_ray.errors import InputError, in_a_line, message_of
from flashvideo_ray.ledger.claim import ClaimLostError, ClaimUnsureError
from flashvideo_ray.ledger.clock import Clock
from flashvideo_ray.ledger.store import Store

T = TypeVar("T")
# These will not be otherwise in a minute.
FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError, ClaimLostError, InputError)
FIRST_DELAY, LONGEST_DELAY = 0.5, 15.0  # seconds
LAST_SECONDS = 60.0  # of patience, for what is to be written when somebody waits for the end
# Of the patience, for a store that refuses this user: stores do so for seconds, and tokens are renewed; but a wrong key
# stays wrong.
DENIED_SHARE = 0.1
_STALE = frozenset({"InvalidToken", "TokenRefreshRequired"})  # S3's codes that s3fs takes for something else
_NO_KEYS = "NoCredentialsError"  # botocore's, which this module need not know: whoever renews the file is writing it
log = logging.getLogger("flashvideo_ray")


class PatientStore(Store):
    """Tries again, with growing pauses, for up to `patience_seconds`: a server that restarts, a disk that is full.

    A store that refuses this user is asked with fresh credentials each time, for a tenth of the patience. An operation
    that still fails then raises the store's own error.
    """

    def __init__(self, url: str, patience_seconds: float, clock: Clock | None = None):
        super().__init__(url, clock)
        self.patience_seconds = patience_seconds

    def hurried(self) -> Self:
        """The same store with the patience of somebody who waits for the end."""
        other = copy.copy(self)
        other.patience_seconds = min(self.patience_seconds, LAST_SECONDS)
        return other

    def put(self, key: str, data: bytes) -> None:
        """See Store."""
        self._wait_for(lambda: Store.put(self, key, data), key)

    def create(self, key: str, data: bytes) -> bool:
        """See Store."""
        return self._wait_for(lambda: Store.create(self, key, data), key)

    def get(self, key: str) -> bytes:
        """See Store."""
        return self._wait_for(lambda: Store.get(self, key), key)

    def exists(self, key: str) -> bool:
        """See Store."""
        return self._wait_for(lambda: Store.exists(self, key), key)

    def delete(self, key: str) -> None:
        """See Store."""
        self._wait_for(lambda: Store.delete(self, key), key)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """See Store."""
        return self._wait_for(lambda: Store.sizes(self, folder), folder)

    def _wait_for(self, operation: Callable[[], T], key: str) -> T:
        deadline = time.monotonic() + self.patience_seconds
        denied_deadline = None
        delay = FIRST_DELAY
        while True:
            pause = delay * random.uniform(0.5, 1.0)  # so that a hundred workers do not come back at once
            try:
                return operation()
            except FINAL:
                raise
            except ClaimUnsureError:
                if not self.patience_seconds:
                    raise
                pause = FIRST_DELAY
                deadline += pause  # whose run it is has a patience of its own
            except Exception as error:  # each store has its own
                last = deadline
                if denied := _denied(error):
                    if self.is_local:
                        raise
                    with suppress(Exception):  # of credentials that are being replaced
                        self.reconnect()
                    if denied_deadline is None:
                        denied_deadline = time.monotonic() + self.patience_seconds * DENIED_SHARE
                    last = min(deadline, denied_deadline)
                else:
                    denied_deadline = None  # a store that was away may refuse again when it begins
                if time.monotonic() + delay > last:
                    if not denied:
                        raise
                    raise PermissionError(
                        f"{self.url}/{key}: refused, with fresh credentials too ({denied}); look at the keys of this "
                        "worker, when they expire, and the rights of the bucket"
                    ) from error
                log.warning("%s/%s: %s; trying again", self.url, key, in_a_line(error))
                delay = min(2 * delay, LONGEST_DELAY)
            time.sleep(pause)

    def __reduce__(self) -> tuple[type[PatientStore], tuple[str, float, Clock]]:  # type: ignore[override]
        return PatientStore, (self.url, self.patience_seconds, self.clock)


def _denied(error: Exception) -> str | None:
    """Why the store refuses this user, if that is the error."""
    response = getattr(error.__cause__, "response", None)
    code = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    if isinstance(error, PermissionError) or code in _STALE or type(error).__name__ == _NO_KEYS:
        return ": ".join(filter(None, [code, message_of(error)]))
    return None
