"""What the columns of a dataset mean, with units."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from flashvideo_ray.export.options import Options
from flashvideo_ray.scorers import columns as score_columns

_MEANING: dict[str, tuple[str, str]] = {  # unit, meaning
    "clip_id": ("", "names the candidate: a digest of all that decides its pixels"),
    "pair_id": ("", "names the pair: a digest of both candidates, the chosen one first"),
    "id": ("", "the prompt's own id"),
    "prompt": ("", "the text that the video was made from"),
    "negative_prompt": ("", "the text that guidance led away from"),
    "caption": ("", "the text to train with"),
    "split": ("", "decided by a hash of the prompt's text: one text is in one split"),
    "seed": ("", "the seed of the candidate's noise"),
    "candidate": ("", "its number among the candidates of its prompt, from 0"),
    "status": ("", "how the candidate ended: rendered, rejected; previewed or approved while it has no clip"),
    "decision": ("", "approved by a person, or null where nobody said anything"),
    "decided_by": ("", "who it was"),
    "decided": ("", "people: one was approved and the other rejected; rank: the rank compares them"),
    "margin": ("of the rank", "the rank of the chosen one less that of the rejected one"),
    "rank": ("of the rank", "what candidates of a prompt were compared by; the greater, the better"),
    "frames": ("frames", "length of the clip"),
    "height": ("pixels", "of the clip"),
    "width": ("pixels", "of the clip"),
    "fps": ("frames a second", "of the clip"),
    "bytes": ("bytes", "size of the MP4"),
    "sha256": ("", "of the MP4, in hex"),
    "stream_sha256": ("", "of the video stream within the MP4, in hex"),
    "clip": ("", "key of the MP4 in the run"),
    "preview": ("", "key of the preview's MP4 in the run"),
    "video": ("", "the MP4"),
    "chosen": ("", "the MP4 of the better candidate"),
    "rejected": ("", "the MP4 of the other one"),
}
_SIDES = {"chosen_": "of the chosen candidate", "rejected_": "of the rejected candidate"}


@dataclass(frozen=True)
class Column:
    """One column of the rows."""

    name: str
    type: str
    unit: str
    meaning: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def describe(schema: pa.Schema, media: tuple[str, ...], options: Options) -> list[Column]:
    """The columns of a dataset, those with videos last."""
    fields = [(field.name, str(field.type)) for field in schema]
    kind = {"webdataset": "file .mp4"}.get(options.format, "struct<bytes: binary, path: string>")
    return [_column(name, type_, options) for name, type_ in [*fields, *((name, kind) for name in media)]]


def _column(name: str, type_: str, options: Options) -> Column:
    for prefix, of in _SIDES.items():
        inner = name.removeprefix(prefix)
        if inner != name and (inner in _MEANING or score_columns.is_score(inner)):
            found = _column(inner, type_, options)
            return Column(name, type_, found.unit, f"{found.meaning} ({of})")
    if score_columns.is_score(name):
        return Column(name, type_, "of the scorer", f"the score {score_columns.name_of(name)} of the preview")
    if name == "caption":
        return Column(name, type_, "", f"the text to train with: the column {options.caption} of the run")
    if name == "video" and options.copy_media:
        return Column(name, type_, "", "path of the MP4, relative to the dataset")
    unit, meaning = _MEANING.get(name, ("", "a column of the prompt file"))
    return Column(name, type_, unit, meaning)
