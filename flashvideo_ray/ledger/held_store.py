"""Writing to a run only while it is surely this job's."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from fsspec.asyn import AsyncFileSystem

from flashvideo_ray.ledger.claim import (
    REPORT,
    SAY_SECONDS,
    Claim,
    ClaimedError,
    ClaimLostError,
    ClaimUnsureError,
    clock,
)
from flashvideo_ray.ledger.clock import Clock
from flashvideo_ray.ledger.holder import Identity
from flashvideo_ray.ledger.patience import PatientStore
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import Settings

_ASKED_SECONDS = 5.0
_TURN_SECONDS = 1.0  # between looks at whose turn it is
log = logging.getLogger("flashvideo_ray")


class Permit(Protocol):
    """Who knows whether the run is held: the claim itself, or somebody whom the claim tells."""

    def seconds(self) -> float:
        """For how much longer the run is surely held; not positive while that is not known.

        Raises ClaimLostError if it is not held any more.
        """


class AskedPermit:
    """A permit of another process, which is asked for the seconds that are left, and for why the run is lost or ''.

    It is asked again when an answer is `_ASKED_SECONDS` old: by then whoever holds the run knows who took it.
    """

    def __init__(self, ask: Callable[[], tuple[float, str]]):
        self._ask = ask
        self._until = 0.0

    def seconds(self) -> float:
        """See Permit."""
        asked = clock()
        if asked >= self._until:
            seconds, lost = self._ask()
            if lost:
                raise ClaimLostError(lost)
            self._until = asked + min(seconds, _ASKED_SECONDS)  # by this machine's clock, before it asked
        return self._until - clock()


class HeldStore(PatientStore):
    """Writes and deletes only with a permit: it is asked before an object is sent, and right before it is visible.

    Without one it waits, which does not count as the store's absence; with no patience at all it raises
    ClaimUnsureError. ClaimLostError ends it. An upload that is under way when the permit ends is broken off. What was
    sent by then, and lies in the network or in a server that stands still, may appear later: under the same name, and
    with the same bytes as another job would give it.
    """

    def __init__(self, url: str, patience_seconds: float, permit: Permit, clock: Clock | None = None):
        super().__init__(url, patience_seconds, clock)
        self.permit = permit

    def _may_write(self) -> None:
        if self.permit.seconds() <= 0:
            raise ClaimUnsureError(f"{self.url}: nothing is written while it is not sure whose run it is")

    def _send(self, path: str, data: bytes) -> None:
        if not isinstance(self.fs, AsyncFileSystem):
            return super()._send(path, data)
        sending = asyncio.run_coroutine_threadsafe(self.fs._pipe_file(path, data), self.fs.loop)
        try:
            while not concurrent.futures.wait([sending], self.permit.seconds()).done:
                self._may_write()
            sending.result()
        finally:
            sending.cancel()

    def __reduce__(self) -> tuple[type[HeldStore], tuple[str, float, Permit, Clock]]:  # type: ignore[override]
        return HeldStore, (self.url, self.patience_seconds, self.permit, self.clock)


@contextmanager
def hold(store: Store, settings: Settings, takeover: bool = False) -> Iterator[HeldStore]:
    """Claim the run for a time of work, with the lease and the patience of the settings. Raises ClaimedError."""
    lease, patience = settings.ledger.lease_seconds, settings.store_patience_seconds
    with Claim(store, Identity.of_this_process(), lease, takeover, patience) as claim:
        yield under(claim)


@contextmanager
def turn(store: Store, settings: Settings) -> Iterator[HeldStore]:
    """Hold the report of a run, after whoever has it: so who writes it last has read all that was there."""
    lease, patience = settings.ledger.lease_seconds, settings.store_patience_seconds
    said = clock()
    with ExitStack() as held:
        while True:
            claim = Claim(store, Identity.of_this_process(), lease, patience_seconds=patience, scope=REPORT)
            try:
                held.enter_context(claim)
                break
            except ClaimedError as error:
                if clock() - said >= SAY_SECONDS:
                    said = clock()
                    log.warning("waiting to write the report: %s", error)
                time.sleep(_TURN_SECONDS)
        yield under(claim)


def under(claim: Claim) -> HeldStore:
    """The run of a claim, as patient as the claim is."""
    return HeldStore(claim.store.url, claim.patience_seconds, claim, claim.store.clock)
