"""How a run stands: its ledger at one moment, with what selection and people say of the candidates now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa

from flashvideo_ray.accounting.summary import statuses
from flashvideo_ray.graph.verdicts import judged
from flashvideo_ray.ledger import decisions, tables
from flashvideo_ray.ledger.decisions import Opinion
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.texts import COLUMNS, Texts, still_open
from flashvideo_ray.settings import Settings

_IN = ("previewed", "approved")
_VERDICT = ("status", "reason", "stage", "error_class", "error")


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
    def read(cls, store: Store, settings: Settings) -> Self:
        """From the ledger, the settings' rules and people's decisions."""
        candidates = tables.read(store, "candidates", COLUMNS)
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
        open_ = still_open(self.candidates, found) if self.candidates.num_rows else max(0, wanted - len(found))
        before = len(statuses(*self.earlier))
        return {**Counter(found.values()), "open": open_, **({"earlier text": before} if before else {})}


def _decided_anew(
    previews: pa.Table, clips: pa.Table, settings: Settings, people: Mapping[str, Opinion]
) -> tuple[pa.Table, pa.Table]:
    """Previews and clips with what selection and people say of the candidates now.

    A clip stays, and so does a failure of a stage. A rejection does not outlive what it came of: where `select` or a
    person decided anew, its row says so here, as the next job will.
    """
    verdicts = judged(previews, settings, people).select([*_VERDICT, "clip_id"]).to_pylist()
    # Rules about the whole run come after a preview's row: what nobody said in person counts if row and rules agree.
    now = {
        verdict["clip_id"]: verdict
        for verdict, written in zip(verdicts, previews["status"].to_pylist(), strict=True)
        if verdict["clip_id"] in people or (verdict["status"] in _IN) == (written in _IN)
    }
    ended = clips.select([name for name in ("clip_id", "status", "error_class") if name in clips.column_names])
    anew = {
        row["clip_id"]: now[row["clip_id"]]
        for row in ended.to_pylist()
        if row["clip_id"] in now
        and (row["status"] in ("rejected", "skipped") or row.get("error_class") == tables.MISSING_SCORE)
        and (now[row["clip_id"]]["status"] in _IN) != (row["status"] == "skipped")
    }
    return _decided(previews, {clip_id: now[clip_id] for clip_id in people if clip_id in now}), _decided(clips, anew)


def _decided(table: pa.Table, verdicts: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """The rows with these verdicts instead of theirs."""
    if not verdicts:
        return table
    ids = table["clip_id"].to_pylist()
    for name in _VERDICT:
        if name in table.column_names:
            old = zip(ids, table[name].to_pylist(), strict=True)
            values = [verdicts[clip_id][name] if clip_id in verdicts else value for clip_id, value in old]
            table = tables.with_column(table, name, pa.array(values, table.schema.field(name).type))
    return table
