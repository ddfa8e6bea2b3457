"""Candidates that ended in a round, on their way into the ledger: each is counted once, wherever it comes from."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from flashvideo_ray.graph.tracker_actor import writing
from flashvideo_ray.graph.verdicts import goes_on
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.writer import Writer


class Arrivals:
    """Rows of `rows`, the work of a round. They come out of the graph, in the thread of the job.

    Those that are out when they are judged end there: the tracker has them, and the heartbeat takes them from it. They
    would wait for stage 2 in vain, one behind another in the driver's memory.

    `came` are the candidates that ended, `failed` those of them that failed, and `ended` counts them by status: these
    belong to who made this, who may have had others before. `in_calls` counts those that ended in a call, as the
    tracker does.
    """

    def __init__(
        self, rows: pa.Table, clips: Writer, tracker: Any, ended: Counter[str], failed: set[str], came: set[str]
    ):
        self._clips, self._tracker = clips, tracker
        self.ended, self.failed, self.came, self.in_calls = ended, failed, came, 0
        compared = rows["id"].filter(pc.greater(rows["group"], 1))
        self._missing = Counter(compared.to_pylist())  # of each prompt whose candidates are compared, how many
        self._taken = 0
        self._taking, self._adding = threading.Lock(), threading.Lock()

    def add(self, batch: pa.Table) -> None:
        """Rows came out of the graph."""
        with self._adding:
            self._add(batch.to_pylist())

    def take(self) -> None:
        """Add what the tracker has."""
        with self._taking:
            rows = ray.get(self._tracker.out.remote(self._taken))
            with self._adding:
                self._add(rows)
            self._taken += len(rows)

    def write_if_due(self) -> None:
        """Make rows durable if that is due: a clip's row follows its preview's."""
        if self._clips.due:
            self._clips.flush(after=self.write_previews)
        ray.get(writing(self._tracker.flush_if_due).remote())

    def write_previews(self) -> None:
        """Make all rows of previews durable now."""
        ray.get(writing(self._tracker.flush).remote())

    def write_clips(self) -> None:
        """Make all other rows durable now, whatever becomes of those of previews."""
        self._clips.flush()

    def _add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        complete = []
        for row in rows:
            if row["id"] in self._missing:
                self._missing[row["id"]] -= 1
                if not self._missing[row["id"]]:
                    complete.append(row["id"])
            if row["status"] == "skipped":
                continue  # by the job's quota: all that is left gets its row at the end
            self.came.add(row["clip_id"])
            self.ended[row["status"]] += 1
            if row["status"] == "failed":
                self.failed.add(row["clip_id"])
            in_a_call = row["status"] == "failed" and row["error_class"] != tables.MISSING_SCORE
            self.in_calls += in_a_call or row["clip"] is not None
            # Not those that the round leaves for a stage 2 still to come.
            if (
                row["clip"] is not None
                or row["status"] == "failed"
                or not (goes_on(row) or row["status"] == "approved")
            ):
                self._clips.append(row)
        # Not before the last of them: Ray may repeat the call that judged them, for a row that is on its way.
        if complete:
            self._tracker.forget.remote(complete)
