"""The stages that score previews and judge them: Score, and Rate for scorers with large models.

Apart from the stages that run FlashVideo: an actor that measures pixels need not load torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from safetensors.numpy import load as unpack

from flashvideo_ray import scorers
from flashvideo_ray.expressions import Requirement
from flashvideo_ray.graph.events import StageEvents
from flashvideo_ray.graph.publishing import Publisher
from flashvideo_ray.graph.stage_base import BULKY, DROPPED, PAYLOAD, StageBase, message_of, say
from flashvideo_ray.ledger.keys import latents_key, poster_key, preview_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.tables import MISSING_SCORE
from flashvideo_ray.selection.rules import SCORE, audited, select
from flashvideo_ray.settings import SelectSettings, Settings, Stage


class Score(StageBase):
    """Frames to numbers, and the preview to the store. The last to score judges: survivor or not, and why.

    Candidates of a prompt that are to be compared wait for one another with the tracker, without holding up the actor:
    the call that brings the last one returns the rows of all, the calls before it none.
    """

    name: ClassVar[Stage] = "score"

    def __init__(
        self, settings: Settings, events: StageEvents, store: Store, fps: float, provenance: Mapping[str, str]
    ):
        self.is_last = self.name == settings.score.stages[-1]
        self.fps = fps
        self.publisher = Publisher(settings, store, fps, provenance)
        super().__init__(settings, events)

    def load(self) -> None:
        """The scorers of this pool, and what previews are signed with, if they are."""
        own = self.settings.credentials
        self.publisher.load(signed=own is not None and own.previews)
        specs = [spec for spec in self.settings.score.scorers if spec.pool == self.name]
        self.scorers = [(spec.name, scorers.load(spec.name, spec.options, fps=self.fps)) for spec in specs]

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
            scores, errors = self._scores(frames, row["prompt"])
        keys = self._publish(row, frames)
        return {
            **keys,
            "scores": [*(row["scores"] or []), *scores.items()],
            "scorer_errors": "; ".join(filter(None, [row["scorer_errors"], *errors])) or None,
            f"{self.name}_seconds": time.perf_counter() - started,
            "preview_frames": None if self.is_last else row["preview_frames"],
        }

    def _publish(self, row: Mapping[str, Any], frames: np.ndarray) -> dict[str, str]:
        """Store the preview's MP4 and poster. The latents are there already."""
        key = preview_key(row["clip_id"])
        self.publisher.preview(key, row, frames)
        return {"latents": latents_key(row["clip_id"]), "preview": key, "poster": poster_key(key)}

    def _scores(self, frames: np.ndarray, prompt: str) -> tuple[dict[str, float | None], list[str]]:
        """The numbers, and what went wrong with those that are missing: a scorer never costs a preview."""
        scores: dict[str, float | None] = {}
        errors = []
        for name, scorer in self.scorers:
            try:
                found = scorer(frames, prompt)
                scores |= {key: float(found[key]) for key in scorer.names}
                wrong = [key for key in scorer.names if not math.isfinite(found[key])]
                if wrong:
                    errors.append(f"{name}: {', '.join(wrong)} is not finite")
            except Exception as error:
                say(f"scorer {name} failed: {type(error).__name__}: {message_of(error)}")
                scores |= dict.fromkeys(scorer.names)
                errors.append(f"{name}: {type(error).__name__}: {message_of(error)}")
        return scores, errors

    def _judged(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        if not row["group"]:
            return [row]
        group: list[dict[str, Any]] | None = [row]
        if row["group"] > 1:
            group = self.events.gather({**row, **dict.fromkeys(BULKY)})
        if group is None:
            return []
        fresh = [each for each in group if each["status"] == "open"]
        verdicts = dict(zip((each["clip_id"] for each in group), _verdicts(group, self.settings.select), strict=True))
        judged = [{**each, **verdicts[each["clip_id"]], "stage": None} for each in fresh]
        for each in judged:
            if each["status"] != "previewed":
                each["stage"] = self.name
                each["audit"] = each["status"] == "rejected" and audited(each["clip_id"], self.settings.select.audit)
        self.events.previewed([{**each, **dict(_columns(each)), **dict.fromkeys(PAYLOAD)} for each in judged])
        own = {each["clip_id"]: each for each in judged}
        others = [each for each in group if each["status"] != "open" and not each.get("context")]
        return [self._carried(each, row) for each in [*own.values(), *others]]

    def _carried(self, judged: dict[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
        """A judged row with what stage 2 needs: the text is that of any candidate of the prompt."""
        if judged["status"] != "previewed" and not judged["audit"]:
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
        [verdict] = _verdicts([row], own)
        return verdict["status"] == "previewed"

    def _publish(self, row: Mapping[str, Any], frames: np.ndarray) -> dict[str, str]:
        """It was published when it was scored first."""
        return {}


def _verdicts(rows: Sequence[Mapping[str, Any]], settings: SelectSettings) -> list[dict[str, Any]]:
    """What selection says of the candidates of one prompt: status, reason, rank, and the error where it is `failed`."""
    scored = [
        {**{name: row[name] for name in ("clip_id", "id", "candidate", "scorer_errors")}, **dict(_columns(row))}
        for row in rows
        if row["scores"] is not None
    ]
    names = dict.fromkeys(name for row in scored for name in row)
    columns = {name: [row.get(name) for row in scored] for name in names}
    for name in ("clip_id", "id", "candidate", "scorer_errors"):
        columns.setdefault(name, [])
    table = pa.table(columns)
    found = dict(zip(columns["clip_id"], select(table, settings).to_pylist(), strict=True))
    return [_verdict(found[row["clip_id"]]) if row["clip_id"] in found else {} for row in rows]


def _verdict(found: dict[str, Any]) -> dict[str, Any]:
    missing = found["status"] == "failed"
    return found | ({"error_class": MISSING_SCORE, "error": found["reason"]} if missing else {})


def _columns(row: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """A row's scores as columns of the ledger."""
    return ((f"{SCORE}{name}", value) for name, value in row["scores"] or ())
