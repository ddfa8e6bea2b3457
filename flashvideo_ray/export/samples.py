"""Samples: which candidates of a run are in its dataset, and the columns of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from flashvideo_ray.export.options import ExportError, Media, Options, split_of
from flashvideo_ray.expressions.filters import Filter
from flashvideo_ray.graph.candidates import carried, named_as_in_rules
from flashvideo_ray.ledger import tables
from flashvideo_ray.scorers import columns

KEY_OF: Mapping[Media, str] = {"clips": "clip", "previews": "preview"}  # the column with a medium's key in the run
_OUTCOMES: Mapping[Media, tuple[str, ...]] = {
    "clips": ("rendered",),
    "previews": ("rendered", "previewed", "approved"),
}
_LEDGER = frozenset({*tables.PREVIEWS.names, *tables.CLIPS.names, "decision", "decided_by"})
_CANDIDATE = ("clip_id", "id", "prompt", "negative_prompt", "caption", "split", "seed", "candidate", "status")
_SAID = ("decision", "decided_by", "rank")
_OF_CLIPS = ("frames", "height", "width", "fps", "bytes", "sha256", "stream_sha256")
_SIDES = ("chosen_", "rejected_")
RESERVED = frozenset({"caption", "split", "video", "pair_id", "decided", "margin", "meets_rules", "chosen", "rejected"})


@dataclass(frozen=True)
class Medium:
    """A video of a row: the column that it has in the dataset, and the one with its key in the run."""

    column: str
    key: str
    sha256: str | None = None
    """The column with what the ledger says of its bytes."""


@dataclass
class Found:
    """Rows that belong in the dataset now, in the order of their keys, without videos.

    `why` says of other candidates (pairs) of the run why they do not, `otherwise` of those that are not in it; `gaps`
    counts what is wanted and cannot be had.
    """

    key: str
    rows: pa.Table
    media: tuple[Medium, ...]
    why: dict[str, str]
    otherwise: str
    gaps: dict[str, int] = field(default_factory=dict)


def samples(candidates: pa.Table, options: Options, sizes: Mapping[str, int] | None) -> Found:
    """Candidates whose clips (previews) are the dataset.

    Those that are rendered (or have a preview that selection let through), that no person rejected, and that meet
    `where`. `sizes` are the objects of the run, None where no media are wanted. Raises ExportError, RuleError.
    """
    key = KEY_OF[options.media_of]
    wanted = meets(candidates, options)
    caption = caption_of(candidates, options)
    why: dict[str, str] = {}
    keep = []
    gaps: dict[str, int] = {}
    columns = ("clip_id", "status", "reason", "decision", "decided_by", key)
    for number, row in enumerate(candidates.select(columns).to_pylist()):
        gap = None
        if row["decision"] == "rejected":
            reason = f"rejected by {row['decided_by']}"
        elif row["status"] not in _OUTCOMES[options.media_of]:
            reason = ": ".join(filter(None, [row["status"], row["reason"]]))
        elif not wanted[number]:
            reason = f"does not meet {options.where}"
        elif caption[number] is None:
            reason = gap = f"no text in the column {options.caption}"
        elif row[key] is None or (sizes is not None and row[key] not in sizes):
            reason = gap = f"its {key} is not in the store"
        else:
            keep.append(number)
            continue
        why[row["clip_id"]] = reason
        if gap is not None:
            gaps[gap] = gaps.get(gap, 0) + 1
    keep.sort(key=candidates["clip_id"].to_pylist().__getitem__)
    captions = pa.array([caption[number] for number in keep], pa.string())
    sha256 = "sha256" if options.media_of == "clips" else None
    return Found(
        key="clip_id",
        rows=_columns(candidates.take(pa.array(keep, pa.int64())), captions, options),
        media=(Medium("video", key, sha256),),
        why=why,
        otherwise="no candidate of the run's present prompts",
        gaps=gaps,
    )


def meets(candidates: pa.Table, options: Options) -> list[bool]:
    """Of each candidate, whether it meets the filter. Raises RuleError."""
    if options.where is None:
        return [True] * candidates.num_rows
    found: list[bool] = Filter.parse(options.where).over(named_as_in_rules(candidates)).to_pylist()
    return found


def caption_of(candidates: pa.Table, options: Options) -> list[str | None]:
    """The caption of each candidate; None where it has no text. Raises ExportError."""
    own = [name for name in candidates.column_names if pa.types.is_string(candidates.schema.field(name).type)]
    if options.caption not in own:
        texts = [name for name in own if name not in _LEDGER or name in ("id", "prompt", "negative_prompt")]
        raise ExportError(f"--caption {options.caption}: no such column of texts; there are {', '.join(texts)}")
    return [text or None for text in candidates[options.caption].to_pylist()]


def own_columns(candidates: pa.Table) -> dict[str, str]:
    """The prompt file's own columns, and what each is called in the dataset, which has names of its own."""
    names, shown = carried(candidates), {}
    for name in names:
        other = name
        while other in RESERVED or other.startswith(_SIDES) or (other != name and other in names):
            other = f"prompt_{other}"
        shown[name] = other
    return shown


def score_columns(candidates: pa.Table) -> list[str]:
    """`score_<name>` of all scores."""
    return columns.those_in(candidates.column_names)


def splits_of(prompts: pa.ChunkedArray, options: Options) -> pa.Array:
    """The split of each prompt."""
    known: dict[str, str] = {}
    for text in prompts.unique().to_pylist():
        known[text] = split_of(text, options.splits)
    return pa.array([known[text] for text in prompts.to_pylist()], pa.string())


def _columns(rows: pa.Table, captions: pa.Array, options: Options) -> pa.Table:
    made = {"caption": captions, "split": splits_of(rows["prompt"], options)}
    of_media = (*(_OF_CLIPS if options.media_of == "clips" else ()), KEY_OF[options.media_of])
    chosen: dict[str, pa.ChunkedArray | pa.Array] = {}
    for name in (*_CANDIDATE, *_SAID, *score_columns(rows), *of_media):
        if name in made or name in rows.column_names:
            chosen[name] = made[name] if name in made else rows[name]
    return pa.table({**chosen, **{shown: rows[name] for name, shown in own_columns(rows).items()}})
