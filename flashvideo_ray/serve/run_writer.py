"""What the scheduler writes of a run: its ledger, under a claim, and nothing when that is not sure."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from flashvideo_ray.errors import Teller
from flashvideo_ray.graph import labels
from flashvideo_ray.ledger import decisions, parquet_log, requests, tables
from flashvideo_ray.ledger.claim import Claim, ClaimedError, ClaimLostError, ClaimUnsureError
from flashvideo_ray.ledger.held_store import HeldStore
from flashvideo_ray.ledger.holder import Identity
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.scorers.panel import names_of
from flashvideo_ray.settings import Settings

RETRY_SECONDS = 2.0  # for a store that is away, and for a claim that somebody else holds
_PARTS = 64  # small ones, after which they are merged
log = logging.getLogger("ray.serve")


def _without_labels(part: str, error: Exception) -> None:
    """What was paid for does not wait for its mend: `render --relabel` labels it once the part is there again."""
    log.warning("%s cannot be read, so what is made of its prompts has no labels: %s", part, error)


class RunWriter:
    """The claim is taken for a time of work and given back; rows are durable when `durably` returns."""

    def __init__(self, store: Store, settings: Settings):
        self.store = store
        self.settings = settings
        self.blocked: str | None = None
        """Who else has the run, if the last attempt at the claim failed."""
        self._mine = HeldStore(store.url, 0.0, self, store.clock)
        self._scores = names_of(settings.score.scorers)
        self._previews = Writer(self._mine, "previews", tables.previews_schema(self._scores), settings.ledger)
        self._clips = Writer(self._mine, "clips", tables.CLIPS, settings.ledger)
        # What the run's prompts brought along, as it was under a claim: no other job adds to it while that is held.
        self._brought: tuple[Claim | None, labels.Brought | None] = (None, None)
        self._made: list[tuple[Writer, Mapping[str, Any], dt.datetime]] = []
        self._writing = threading.Lock()
        self._claim: Claim | None = None
        self._not_before = 0.0
        self._flushing = asyncio.Lock()
        self._trouble = Teller(lambda line: log.warning("ledger not written, trying again: %s", line))

    @property
    def held(self) -> bool:
        """Whether this service may let models work on the run."""
        return self._claim is not None

    def seconds(self) -> float:
        """See Permit. Rows that wait when the claim is lost are written under the next one."""
        return self._claim.seconds() if self._claim is not None else 0.0

    def permitted(self) -> tuple[float, str]:
        """For how many seconds the run is surely held; and why it is not held any more, or ''. For other processes."""
        try:
            return self.seconds(), "" if self.held else f"The service does not hold {self.store.url} any more."
        except ClaimLostError as error:
            return 0.0, str(error)

    async def take(self) -> bool:
        """Claim the run, unless it is held or was refused just now. Returns whether it is newly claimed."""
        if self._claim is not None or time.monotonic() < self._not_before:
            return False
        who = Identity.of_this_process().model_copy(update={"command": f"flashvideo-ray serve {self.store.url}"})
        patience = self.settings.store_patience_seconds
        claim = Claim(self.store, who, self.settings.ledger.lease_seconds, patience_seconds=patience)
        try:
            await asyncio.to_thread(claim.__enter__)
        except ClaimedError as error:
            self.blocked, self._not_before = str(error), time.monotonic() + RETRY_SECONDS
            return False
        self._claim, self.blocked = claim, None
        return True

    def lost(self) -> bool:
        """Whether the claim was taken away; it is not held any more then."""
        if self._claim is None or not self._claim.lost.is_set():
            return False
        log.warning("%s", self._claim.reason)
        self._claim = None
        return True

    async def give_back(self) -> None:
        """Write what there is to write, merge small parts where there are many, and release the claim."""
        claim = self._claim
        if claim is None:
            return
        try:
            await asyncio.to_thread(self._flush)
            await asyncio.to_thread(self._tidy)
        finally:
            self._claim = None
            await asyncio.to_thread(claim.__exit__, None, None, None)

    def preview(self, row: Mapping[str, Any]) -> None:
        """A preview is in the store and judged."""
        self._made.append((self._previews, row, self.store.clock.now()))

    def ended(self, row: Mapping[str, Any]) -> None:
        """A candidate is rendered, or has failed."""
        self._made.append((self._clips, row, self.store.clock.now()))

    async def durably(self) -> None:
        """Write the rows, for as long as it takes: what was paid for is not forgotten."""
        while True:
            try:
                async with self._flushing:
                    await asyncio.to_thread(self._flush)
                return self._trouble.well()
            except Exception as error:  # each store has its own
                self._trouble.tell(error)
            await asyncio.sleep(RETRY_SECONDS)

    def _flush(self) -> None:
        with self._writing:
            self._label()
            self._previews.flush()  # first: a clip's row follows its preview's
            self._clips.flush()

    def _label(self) -> None:
        """Make rows ready: of prompts that a batch run has, with what these brought along."""
        claim, (known, brought) = self._claim, self._brought
        is_new = brought is None or claim is not known
        if is_new:
            # Another job may have given the run other labels since these were made ready.
            waiting = [
                (writer, row, row["at"]) for writer in (self._previews, self._clips) for row in writer.withdraw()
            ]
            self._made[:0] = waiting
        if not (made := [*self._made]):
            return
        if claim is None:
            raise ClaimUnsureError(f"{self.store.url}: this service does not hold the run now")
        if brought is None or is_new:
            brought = labels.Brought(self.store, _without_labels)
            self._brought = claim, brought
            self._previews.schema = tables.previews_schema(self._scores, brought.fields)
            self._clips.schema = tables.extended(tables.CLIPS, brought.fields)
        rows = brought.labelled([row for _, row, _ in made])
        for (writer, _, at), row in zip(made, rows, strict=True):
            writer.append(row, at)
        del self._made[: len(made)]

    def _tidy(self) -> None:
        if len(self.store.keys("ledger", ".parquet")) > _PARTS:
            tables.compact(self._mine)
        for prefix in (requests.PREFIX, decisions.PREFIX):
            if len(self.store.keys(prefix.partition("/")[0], ".parquet")) > _PARTS:
                parquet_log.merge(self._mine, prefix, 250_000)
