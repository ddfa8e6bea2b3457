"""How a run stands: its ledger at one moment, with what selection and people say of the candidates now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.accounting.summary import counts, statuses
from flashvideo_ray.graph.verdicts import verdicts
from flashvideo_ray.ledger import decisions, tables
from flashvideo_ray.ledger.decisions import Opinion
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.texts import COLUMNS, Texts, digested, still_open
from flashvideo_ray.scorers import columns
from flashvideo_ray.settings import Settings

_IN = ("previewed", "approved")
_VERDICT = ("status", "reason", "stage", "error_class", "error")
# What figures are made of: all but keys, digests and columns of the prompt file. Texts become digests.
_FIGURES = frozenset(
    [
        *COLUMNS,
        *_VERDICT,
        *("candidate", "rank", "scorer_errors", "audit", "clip", "frames", "height", "width", "fps", "bytes"),
        *("device", "refine_seconds", "publish_seconds", *tables.PREVIEW_SECONDS, "at"),
    ]
)


@dataclass(frozen=True)
class Standing:
    """A run as its ledger was at one moment: each table read once.

    `previews` and `clips` are of the prompts as they are now, with what selection and people say of the candidates now;
    `earlier` are those of texts that prompts had before; `candidates` are what jobs were started for.
    """

    previews: pa.Table
    clips: pa.Table
    earlier: tuple[pa.Table, pa.Table]
    candidates: pa.Table

    @classmethod
    def read(cls, store: Store, settings: Settings, figures: bool = False) -> Self:
        """From the ledger, the settings' rules and people's decisions; all columns, or those that `figures` need."""
        candidates = tables.read(store, "candidates", [*COLUMNS, "status", "at"], made=digested)
        if figures:
            previews, clips = (tables.read(store, name, _is_figure, made=digested) for name in ("previews", "clips"))
        else:
            previews, clips = tables.read(store, "previews"), tables.read(store, "clips")
        texts = Texts.of(candidates, previews, clips)
        present = _decided_anew(texts.present(previews), texts.present(clips), settings, decisions.opinions(store))
        return cls(*present, (texts.earlier(previews), texts.earlier(clips)), candidates)

    def paid(self) -> tuple[pa.Table, pa.Table]:
        """Previews and clips with those of earlier texts: what they took was paid all the same."""
        pairs = zip((self.previews, self.clips), self.earlier, strict=True)
        previews, clips = (pa.concat_tables(pair, promote_options="permissive") for pair in pairs)
        return previews, clips

    def counts(self, wanted: int) -> dict[str, int]:
        """How many candidates have each status, those that are `open`, and those of an `earlier text`.

        `wanted` is what run.json says of their number, for runs whose ledger does not.
        """
        found = statuses(self.previews, self.clips)
        known = self.candidates.num_rows
        open_ = still_open(self.candidates, found["clip_id"]) if known else max(0, wanted - found.num_rows)
        before = statuses(*self.earlier).num_rows
        return {**counts(found["status"]), "open": open_, **({"earlier text": before} if before else {})}


def _is_figure(name: str) -> bool:
    return name in _FIGURES or columns.is_score(name)


def _decided_anew(
    previews: pa.Table, clips: pa.Table, settings: Settings, people: Mapping[str, Opinion]
) -> tuple[pa.Table, pa.Table]:
    """Previews and clips with what selection and people say of the candidates now.

    A clip stays, and so does a failure of a stage. A rejection does not outlive what it came of: where `select` or a
    person decided anew, its row says so here, as the next job will.
    """
    now = verdicts(previews, settings, people).select(_VERDICT).append_column("clip_id", previews["clip_id"])
    asked = pc.is_in(now["clip_id"], pa.array(list(people), pa.string()))
    # Rules about the whole run come after a preview's row: what nobody said in person counts if row and rules agree.
    now = now.filter(pc.or_(asked, pc.equal(_survives(now["status"]), _survives(previews["status"]))))
    place = pc.index_in(clips["clip_id"], now["clip_id"].combine_chunks())
    rejected = pc.is_in(clips["status"], pa.array(["rejected", "skipped"]))
    if "error_class" in clips.column_names:
        missed = pc.fill_null(pc.equal(clips["error_class"], tables.MISSING_SCORE), False)
        rejected = pc.or_(rejected, missed)
    moved = pc.not_equal(_survives(now["status"].take(place)), pc.equal(clips["status"], "skipped"))
    anew = pc.if_else(pc.and_(rejected, moved), place, pa.scalar(None, place.type))
    said = now.filter(pc.is_in(now["clip_id"], pa.array(list(people), pa.string())))
    own = pc.index_in(previews["clip_id"], said["clip_id"].combine_chunks())
    return _decided(previews, said, own), _decided(clips, now, anew)


def _survives(status: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.is_in(status, pa.array(_IN))


def _decided(table: pa.Table, verdicts_: pa.Table, place: pa.ChunkedArray) -> pa.Table:
    """The rows with the verdicts of these places instead of theirs, where there is one."""
    if place.null_count == len(place):
        return table
    for name in _VERDICT:
        if name in table.column_names:
            new = verdicts_[name].cast(table.schema.field(name).type).take(place)
            table = tables.with_column(table, name, pc.if_else(place.is_valid(), new, table[name]))
    return table
