"""Writing to a run only while it is surely this job's."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import Protocol

from fsspec.asyn import AsyncFileSystem

from flashvideo_ray.ledger.claim import Claim, ClaimUnsureError
from flashvideo_ray.ledger.clock import Clock
from flashvideo_ray.ledger.patience import PatientStore


class Permit(Protocol):
    """Who knows whether the run is held: the claim itself, or somebody whom the claim tells."""

    def seconds(self) -> float:
        """For how much longer the run is surely held; not positive while that is not known.

        Raises ClaimLostError if it is not held any more.
        """


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


def under(claim: Claim) -> HeldStore:
    """The run of a claim, as patient as the claim is."""
    return HeldStore(claim.store.url, claim.patience_seconds, claim, claim.store.clock)
