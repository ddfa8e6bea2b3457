"""The stages that score previews and judge them: Score, and Rate for scorers with large models.

Apart from the stages that run FlashVideo: an actor that measures pixels need not load torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from safetensors.numpy import load as unpack

from flashvideo_ray.expressions.rules import Requirement
from flashvideo_ray.graph.events import StageEvents
from flashvideo_ray.graph.logs import say
from flashvideo_ray.graph.publishing import Publisher
from flashvideo_ray.graph.stage_base import BULKY, DROPPED, PAYLOAD, StageBase
from flashvideo_ray.graph.verdicts import goes_on, table_of, verdicts
from flashvideo_ray.ledger.keys import poster_key, preview_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.scorers import columns
from flashvideo_ray.scorers.panel import Panel
from flashvideo_ray.selection.survivors import select
from flashvideo_ray.settings import SelectSettings, Settings, Stage


class Score(StageBase):
    """Frames to numbers, and the preview to the store. The last to score judges: survivor or not, and why.

    Candidates of a prompt that are to be compared wait for one another with the tracker, without holding up the actor:
    the call that brings the last one returns the rows of all, the calls before it none. Rows that are out end here: in
    a batch job the tracker has them (`arrivals`), and they do not queue before stage 2.
    """

    name: ClassVar[Stage] = "score"

    def __init__(
        self, settings: Settings, events: StageEvents, store: Store, fps: float, provenance: Mapping[str, str]
    ):
        self.is_last = self.name == settings.score.stages[-1]
        self.fps = fps
        self.publisher = Publisher(settings, store, fps, provenance)
        super().__init__(settings, events, store)

    def load(self) -> None:
        """The scorers of this pool, and what previews are signed with, if they are."""
        own = self.settings.credentials
        self.publisher.load(signed=own is not None and own.previews)
        self.panel = Panel((spec for spec in self.settings.score.scorers if spec.pool == self.name), self.fps)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Map rows to scored ones; in the last stage that scores to judged ones, when all of their prompt are there."""
        scored = super().__call__(batch)
        if not self.is_last:
            return scored
        rows = [judged for row in scored.to_pylist() for judged in self._judged(row)]
        return pa.Table.from_pylist(rows, schema=batch.schema)

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Rows with a new preview."""
        return row["status"] == "open"

    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """Adds `scores` and where the preview is; drops its frames if nobody needs them any more."""
        started = time.perf_counter()
        frames = unpack(row["preview_frames"])["frames"]
        with self.device(row):
            scored = self.panel(frames, row["prompt"])
        for error in scored.errors:
            say(f"a scorer failed on {row['clip_id']}: {error}")
        keys = self._publish(row, frames)
        return {
            **keys,
            "scores": [*(row["scores"] or []), *scored.numbers.items()],
            "scorer_errors": "; ".join(filter(None, [row["scorer_errors"], *scored.errors])) or None,
            f"{self.name}_seconds": time.perf_counter() - started,
            "preview_frames": None if self.is_last else row["preview_frames"],
        }

    def _publish(self, row: Mapping[str, Any], frames: np.ndarray) -> dict[str, str]:
        """Store the preview's MP4 and poster. What stage 2 takes is there already."""
        key = preview_key(row["clip_id"])
        self.publisher.preview(key, row, frames)
        return {"preview": key, "poster": poster_key(key)}

    def _judged(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        if not row["group"]:
            return [row]
        group: list[dict[str, Any]] | None = [row]
        if row["group"] > 1:
            group = self.events.gather({**row, **dict.fromkeys(BULKY)})
        if group is None:
            return []
        table = _scored(group)
        said = dict(zip(table["clip_id"].to_pylist(), verdicts(table, self.settings).to_pylist(), strict=True))
        judged = [{**each, **said[each["clip_id"]]} for each in group if each["status"] == "open"]
        told = [{**each, **dict(_columns(each)), **dict.fromkeys(PAYLOAD)} for each in judged]
        left = self.events.previewed(told) if judged else ()
        own = {each["clip_id"]: each for each in judged if each["clip_id"] not in left}
        others = [each for each in group if each["status"] != "open" and not each.get("context")]
        return [self._carried(each, row) for each in [*own.values(), *others]]

    def _carried(self, judged: dict[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
        """A judged row with what stage 2 needs: the text is that of any candidate of the prompt."""
        if not goes_on(judged):
            return {**judged, **DROPPED}
        latents = last["preview_latents"] if judged["clip_id"] == last["clip_id"] else None
        return {**judged, **DROPPED, "prompt_embeds": last["prompt_embeds"], "preview_latents": latents}


class Rate(Score):
    """Scores by large models, in a pool of their own; it only sees what the scores before it let through."""

    name = "rate"

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Rows with a new preview that no requirement about the scores at hand rejects."""
        if row["status"] != "open":
            return False
        known = {name for name, _ in row["scores"]}
        rules = [text for text in self.settings.select.require if Requirement.parse(text).names <= known]
        own = SelectSettings(require=tuple(rules), missing=self.settings.select.missing)
        [status] = select(_scored([row]), own)["status"].to_pylist()
        return bool(status == "previewed")

    def _publish(self, row: Mapping[str, Any], frames: np.ndarray) -> dict[str, str]:
        """It was published when it was scored first."""
        return {}


def _scored(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Those of a prompt's candidates that have scores, as selection takes them."""
    scored = [{**row, **dict(_columns(row))} for row in rows if row["scores"] is not None]
    return table_of(scored, dict.fromkeys(name for row in scored for name, _ in _columns(row)))


def _columns(row: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """A row's scores as columns of the ledger."""
    return ((columns.column(name), value) for name, value in row["scores"] or ())
