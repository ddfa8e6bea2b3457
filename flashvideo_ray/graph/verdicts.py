"""What becomes of previews by their scores, in the ledger's words: asked while a run goes on, and of a whole one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.ledger import tables
from flashvideo_ray.selection.survivors import Opinion, audited, select
from flashvideo_ray.settings import Settings

_KNOWN = {"clip_id": pa.string(), "id": pa.string(), "candidate": pa.int32(), "scorer_errors": pa.string()}


def table_of(rows: Sequence[Mapping[str, Any]], scores: Iterable[str]) -> pa.Table:
    """What selection is fed with, of rows of previews; `scores` are columns. What a row does not have is null."""
    kinds = _KNOWN | dict.fromkeys(scores, pa.float64())
    return pa.table({name: pa.array([row.get(name) for row in rows], kind) for name, kind in kinds.items()})


def verdicts(previews: pa.Table, settings: Settings, people: Mapping[str, Opinion] | None = None) -> pa.Table:
    """Ask selection about previews, as `selection.survivors.select` takes them.

    Returns, in their order, `status`, `reason` and `rank`; for those that are out `stage`, and `audit` where they are
    refined all the same; for those that failed for want of a score `error_class` and `error`.
    """
    said = select(previews, settings.select, people)
    out, failed = pc.is_in(said["status"], pa.array(["rejected", "failed"])), pc.equal(said["status"], "failed")
    clip_ids, status = previews["clip_id"].to_pylist(), said["status"].to_pylist()
    by_rule = [
        word == "rejected" and clip_id not in (people or ()) and audited(clip_id, settings.select.audit)
        for clip_id, word in zip(clip_ids, status, strict=True)
    ]
    null = pa.scalar(None, pa.string())
    return (
        said.append_column("stage", pc.if_else(out, settings.score.stages[-1], null))
        .append_column("audit", pa.array(by_rule, pa.bool_()))
        .append_column("error_class", pc.if_else(failed, tables.MISSING_SCORE, null))
        .append_column("error", pc.if_else(failed, said["reason"], null))
    )


def goes_on(row: Mapping[str, Any]) -> bool:
    """Whether stage 2 gets a preview that was judged: a survivor, or one of the rejected that is audited."""
    return row["status"] == "previewed" or bool(row.get("audit"))


def judged(previews: pa.Table, settings: Settings, people: Mapping[str, Opinion]) -> pa.Table:
    """Previews with what selection says of them now, in the columns of `verdicts`."""
    now = verdicts(previews, settings, people)
    for name in now.column_names:
        previews = tables.with_column(previews, name, now[name])
    return previews
