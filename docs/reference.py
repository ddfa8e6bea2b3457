"""Writes docs/settings.md: every setting and every column of the ledger, from the code. `python docs/reference.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from flashvideo_ray.ledger import tables
from flashvideo_ray.settings import Settings

FILE = Path(__file__).parent / "settings.md"
_HEAD = """# Reference

Made from the code by `python docs/reference.py`; a test says so where it is out of date.

## Settings

In a YAML file, or one by one with `--set key=value`. `null` in `preview` and `refine`: what the model itself states.
"""


def page() -> str:
    """The text of the file."""
    parts = [_HEAD]
    for prefix, model in _models(Settings, ""):
        title = f"`{prefix}`" if prefix else "At the top"
        about = " ".join((model.__doc__ or "").split())
        parts.append(
            f"### {title}\n\n{about}\n\n| key | type | default | |\n| --- | --- | --- | --- |\n{_rows(model, prefix)}"
        )
    parts.append("## The ledger\n\nTypes as Arrow names them. What the columns mean: [ledger.md](ledger.md).\n")
    schemas = {**tables.SCHEMAS, "jobs": tables.JOBS}
    for name, schema in schemas.items():
        rows = "".join(f"| `{field.name}` | {field.type} |\n" for field in schema)
        parts.append(f"### `ledger/{name}-*.parquet`\n\n| column | type |\n| --- | --- |\n{rows}")
    return "\n".join(parts)


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
    FILE.write_text(page())
    sys.stdout.write(f"{FILE}\n")
