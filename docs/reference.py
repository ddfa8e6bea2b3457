"""Writes docs/settings.md and docs/ledger-columns.md, from the code: every setting, every column.

`python docs/reference.py`
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from flashvideo_ray.ledger import decisions, requests, tables
from flashvideo_ray.settings import Settings

FOLDER = Path(__file__).parent
_SETTINGS = """# Settings

Made from the code by `python docs/reference.py`; a test says so where it is out of date.

In a YAML file, or one by one with `--set key=value`. `null` in `preview` and `refine`: what the model itself states.
"""


_LEDGER = """# The ledger's columns

Made from the code by `python docs/reference.py`; a test says so where it is out of date.

Types as Arrow names them; a column that is never null says so. How the tables work together: [ledger.md](ledger.md).
Beside these stand `score_<name>` (double, in previews), one column a score, and the other columns of the prompt file.
Keys are relative to OUTPUT, seconds are of wall time.
"""

# What a column means where its table says nothing else. A column without a meaning stops this program.
_OF_ALL = {
    "clip_id": "names the candidate: a digest of all that decides its preview",
    "id": "the prompt's own id, or derived from its text",
    "prompt": "the text",
    "negative_prompt": "what guidance leads away from",
    "seed": "of the candidate's noise",
    "candidate": "its number among the candidates of its prompt, from 0",
    "reason": "why it was rejected or failed",
    "poster": "key of a picture of it",
    "text_seconds": "of its text; null where another candidate's text was the same, or this run did not pay for it",
    "preview_seconds": "of stage 1, likewise",
    "score_seconds": "of the scorers of the pool `score`",
    "rate_seconds": "of the scorers of the pool `rate`",
    "memory_note": "what a stage did otherwise than asked, for want of memory; null: nothing",
    "device": "what made it, or what it failed on",
    "host": "where",
    "at": "when the row was written; of rows of one candidate (or job) the newest counts",
    "by": "who",
}
_OF_TABLE: dict[str, dict[str, str]] = {
    "candidates": {"status": "`wanted`: a job was started for it"},
    "previews": {
        "status": "`previewed`, `rejected` by the rules, `approved` by a person, `failed` where a score was missing "
        "and `select.missing` is `fail`; `open` takes the rows before it back",
        "latents": "key of what stage 2 takes: latents, or frames without loss where stage 2 is of another model; "
        "null: not kept",
        "preview": "key of the MP4; null: not kept",
        "preview_sha256": "of the file at `preview_url`, where the preview existed already",
        "rank": "what candidates of its prompt were compared by; the greater, the better",
        "scorer_errors": "which scorers gave no number, and why",
    },
    "clips": {
        "status": "`rendered`, `rejected`, `failed` or `skipped` (by a quota: the next job takes it up); `open` takes "
        "the rows before it back",
        "stage": "where it failed",
        "error_class": "of what it failed",
        "error": "the message",
        "attempts": "how often it was tried",
        "clip": "key of the MP4",
        "frames": "of the MP4",
        "height": "of the MP4, in pixels",
        "width": "of the MP4, in pixels",
        "fps": "of the MP4, frames a second",
        "bytes": "of the MP4",
        "sha256": "of the MP4 as it was published",
        "stream_sha256": "of its video stream alone: equal for the same candidate over retries, whatever the file says "
        "of itself or is signed with; `ffmpeg -i FILE -map 0:v -c copy -f hash -hash sha256 -` gives it, too",
        "refine_seconds": "of stage 2, of a call that failed, too",
        "publish_seconds": "of encoding and storing, likewise",
        "audit": "rejected, and refined all the same: it has a `clip`",
    },
    "jobs": {
        "job_id": "names the job",
        "status": "`running`, `ended`, `stopped` (by a signal) or `failed`; of a job that was killed, `running` stays",
        "started": "when it began",
        "seconds": "of the job; of a killed one until its last row",
        "error": "what it failed of, or met: nodes that were left out, a stage that stopped",
        "command": "as it was typed; null in the row `before`, of a run older than this table",
        "user": "who started it",
        "settings": "JSON: what the job was told, prices included; `report` and `status` go by the newest",
        "run": "JSON: run.json as the job left it",
    },
    "decisions": {"status": "`approved`, `rejected`, or `cleared`: the rules decide again", "note": "a word about it"},
    "requests": {
        "status": "what is wanted: `preview`, `refine`, or `cancelled`",
        "job": "which call submitted it",
        "key": "that call's `Idempotency-Key`",
        "body": "a digest of what it asked for",
    },
}


def pages() -> dict[str, str]:
    """The files and their texts."""
    return {"settings.md": settings(), "ledger-columns.md": ledger()}


def settings() -> str:
    """Every setting."""
    parts = [_SETTINGS]
    for prefix, model in _models(Settings, ""):
        title = f"`{prefix}`" if prefix else "At the top"
        about = " ".join((model.__doc__ or "").split())
        parts.append(
            f"### {title}\n\n{about}\n\n| key | type | default | |\n| --- | --- | --- | --- |\n{_rows(model, prefix)}"
        )
    return "\n".join(parts)


def ledger() -> str:
    """Every column of every table."""
    parts = [_LEDGER]
    kept = {**{f"ledger/{name}": schema for name, schema in tables.SCHEMAS.items()}, "ledger/jobs": tables.JOBS}
    kept |= {"decisions/decisions": decisions.SCHEMA, "requests/requests": requests.SCHEMA}
    for name, schema in kept.items():
        rows = "".join(_column(name.rpartition("/")[2], field) for field in schema)
        parts.append(f"## `{name}-*.parquet`\n\n| column | type | |\n| --- | --- | --- |\n{rows}")
    return "\n".join(parts)


def _column(table: str, field: pa.Field) -> str:
    """Its row. Raises KeyError where nobody has said what it means."""
    pool = re.fullmatch(r"(\w+)_(held|busy)_seconds", field.name)
    if pool is not None:
        about = {"held": "that actors of `{}` held their place", "busy": "that actors of `{}` were at work"}[pool[2]]
        about = about.format(pool[1])
    else:
        about = _OF_TABLE[table].get(field.name) or _OF_ALL[field.name]
    return f"| `{field.name}` | {field.type}{'' if field.nullable else ', never null'} | {about} |\n"


def _models(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """The model and those within it, each with the key that it stands under; one that stands in several places once."""
    seen: set[type[BaseModel]] = set()

    def walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
        if model in seen:
            return
        seen.add(model)
        yield prefix, model
        for name, field in model.model_fields.items():
            for inner in _inner(field.annotation):
                yield from walk(inner, f"{prefix}.{name}" if prefix else name)

    yield from walk(model, prefix)


def _inner(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _inner(argument)


def _rows(model: type[BaseModel], prefix: str) -> str:
    schema = model.model_json_schema()["properties"]
    rows = []
    for name, field in model.model_fields.items():
        if [*_inner(field.annotation)] and field.default is not None and isinstance(field.default, BaseModel):
            default = "see below"
        elif field.default is PydanticUndefined:
            default = "needed"
        else:
            default = f"`{json.dumps(_plain(field.default))}`"
        about = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{f'{prefix}.{name}' if prefix else name}` | {_type(schema[name])} | {default} | {about} |\n")
    return "".join(rows)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _type(schema: dict[str, Any]) -> str:
    """In words: a type with its range, or the values that there are."""
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "$ref" in schema or "allOf" in schema:
        return "keys"
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}" if "items" in schema else "list"
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[name]:g}" for name, sign in limits.items() if name in schema]
    return " ".join([str(schema.get("type", "any")), *bounds])


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
        sys.stdout.write(f"{FOLDER / name}\n")
