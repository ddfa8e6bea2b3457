"""Prompts as they are used: named, seeded, and each problem of the whole table told at once."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.prompts.rows import SHOWN, PromptError, Rows

Duplicates = Literal["refuse", "drop", "seed"]
OWN_COLUMNS = ("id", "prompt", "negative_prompt", "seed")
PROMPTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("negative_prompt", pa.string()),
        pa.field("seed", pa.int64(), nullable=False),
    ]
)
log = logging.getLogger("flashvideo_ray")


def checked(rows: Sequence[Mapping[str, Any]], *, base_seed: int = 0) -> pa.Table:
    """Prompts that are at hand: mappings with `prompt` and, if wished, the other columns of PROMPTS.

    They are checked, named and seeded as `read_prompts` does. Raises PromptError.
    """
    kinds = {field.name: field.type for field in PROMPTS}
    try:
        given = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in kinds.items()}
    except UnicodeEncodeError as error:
        raise PromptError(f"prompts: half of a surrogate pair is no text: {error.object[error.start]!r}") from None
    table = pa.table({name: column for name, column in given.items() if column.null_count < len(rows)})
    return check(table, Rows([("", len(rows))]), base_seed, "prompts")


def digest(*parts: str) -> str:
    """20 hex characters that name the parts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def check(
    table: pa.Table, rows: Rows, base_seed: int, url: str, duplicates: Duplicates = "refuse", span: int = 1
) -> pa.Table:
    """The columns of PROMPTS and the carried ones. See `read_prompts`; `url` and `rows` are for its messages."""
    problems: dict[str, list[int]] = defaultdict(list)
    prompts = _texts(table, "prompt", problems, required=True)
    negatives = _texts(table, "negative_prompt", problems)
    given = _ids(table, problems)
    seeds = _seeds(table, problems)

    # Of two rows with the same text, only those with their own seed are different candidates.
    ids = [
        name if name is not None else digest(prompt or "", negative or "", str(seed if seed is not None else ""))[:12]
        for name, prompt, negative, seed in zip(given, prompts, negatives, seeds, strict=True)
    ]
    final_seeds = [
        seed if seed is not None else _seed_of(base_seed, name) for name, seed in zip(ids, seeds, strict=True)
    ]
    width = span if duplicates == "seed" else 1
    first: dict[tuple[str | None, str, int], int] = {}  # by text, and by where the seed is, in steps of the width
    repeats: dict[int, int] = {}  # rows that say what one before them says, and that one
    for index, (prompt, negative, seed) in enumerate(zip(prompts, negatives, final_seeds, strict=True)):
        near = [first.get((prompt, negative or "", seed // width + step)) for step in (0, -1, 1)]
        before = next((row for row in near if row is not None and abs(final_seeds[row] - seed) < width), None)
        if before is None:
            first[prompt, negative or "", seed // width] = index
        else:
            repeats[index] = before
    if duplicates == "seed":
        times: dict[int, int] = defaultdict(int)
        for index, before in repeats.items():
            times[before] += 1
            if given[index] is None:
                ids[index] = digest(prompts[index] or "", negatives[index] or "", ids[before], str(times[before]))[:12]
            final_seeds[index] = _seed_of(base_seed, ids[index])
    kept = [index for index in range(table.num_rows) if duplicates != "drop" or index not in repeats]

    seen: dict[str, int] = {}
    for index in kept:
        name = given[index]
        if name is not None and seen.setdefault(name, index) != index:
            problems[f"the id {name!r} was used before ({rows.name(seen[name])}); ids must be unique"].append(index)
    if problems:
        lines = [f"{rows.list(indices)}: {problem}" for problem, indices in list(problems.items())[:SHOWN]]
        if len(problems) > SHOWN:
            lines.append(f"and {len(problems) - SHOWN} more kinds of problem")
        raise PromptError(f"{url}: " + "\n".join(lines))
    if repeats:
        pairs = rows.pairs([(before, index) for index, before in repeats.items()])
        if duplicates == "refuse":
            raise PromptError(
                f"{url}: {pairs} are the same prompt with the same seed; drop one of each, or give each an id of its "
                "own or a seed, or set prompts.duplicates to drop or seed"
            )
        what = "were dropped" if duplicates == "drop" else "got a seed of their own"
        log.warning("%d of %d prompts repeat another one and %s: %s", len(repeats), table.num_rows, what, pairs)

    own = pa.table([ids, prompts, negatives, final_seeds], schema=PROMPTS)
    for name in table.column_names:
        if name not in OWN_COLUMNS:
            own = own.append_column(table.schema.field(name), _carried(table[name], name))
    return own.take(pa.array(kept)) if len(kept) < own.num_rows else own


def _seed_of(base_seed: int, name: str) -> int:
    return int(digest(str(base_seed), name)[:8], 16)


def _carried(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """The column, if its values survive the way through Python objects that rows take."""
    try:
        if same_values(pa.array(column.to_pylist(), column.type), column.combine_chunks()):
            return column
    except (ValueError, OverflowError, TypeError, pa.ArrowException):
        pass
    raise PromptError(
        f"column {name!r} holds {column.type}, which cannot be carried along unchanged; turn it into text or drop it"
    )


def same_values(a: pa.Array, b: pa.Array) -> bool:
    """Whether two arrays of one type hold the same values; NaN is the same as NaN."""
    if a.equals(b):
        return True
    kind = a.type
    if len(a) != len(b) or not a.is_valid().equals(b.is_valid()):
        return False
    if pa.types.is_floating(kind):
        a, b = a.drop_null().cast(pa.float64()), b.drop_null().cast(pa.float64())
        alike = pc.or_(pc.equal(a, b), pc.and_(pc.is_nan(a), pc.is_nan(b)))
        return bool(pc.all(alike, min_count=0).as_py())
    if pa.types.is_struct(kind):
        return all(same_values(x, y) for x, y in zip(a.flatten(), b.flatten(), strict=True))
    if pa.types.is_map(kind):
        return same_values(a.keys, b.keys) and same_values(a.items, b.items) and a.offsets.equals(b.offsets)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.list_value_length(a).equals(pc.list_value_length(b))
        return lengths and same_values(a.flatten(), b.flatten())
    return False


def _texts(table: pa.Table, name: str, problems: dict[str, list[int]], required: bool = False) -> list[str | None]:
    if name not in table.column_names:
        return [None] * table.num_rows
    column = table[name]
    if not (pa.types.is_string(column.type) or column.null_count == len(column)):
        raise PromptError(f"column {name!r} holds {column.type}, expected text (string)")
    values = column.to_pylist()
    for index, value in enumerate(values):
        if required and value is None:
            problems[f"{name} is null"].append(index)
        elif required and not value.strip():
            problems[f"{name} is empty"].append(index)
        _check_nul(value, name, index, problems)
    return values


def _check_nul(value: str | None, name: str, index: int, problems: dict[str, list[int]]) -> None:
    if value is not None and "\0" in value:
        problems[f"{name} holds a NUL character, where the metadata of an MP4 would end; remove it"].append(index)


def _ids(table: pa.Table, problems: dict[str, list[int]]) -> list[str | None]:
    if "id" not in table.column_names:
        return [None] * table.num_rows
    kind = table["id"].type
    if not (pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise PromptError(f"column 'id' holds {kind}, expected text or whole numbers")
    values = [None if value is None else str(value) for value in table["id"].to_pylist()]
    if pa.types.is_null(kind):
        return values
    for index, value in enumerate(values):
        if value is None:
            problems["id is null; fill it, or drop the column to have ids derived from the text"].append(index)
        elif not value.strip():
            problems["id is empty"].append(index)
        _check_nul(value, "id", index, problems)
    return values


def _seeds(table: pa.Table, problems: dict[str, list[int]]) -> list[int | None]:
    if "seed" not in table.column_names:
        return [None] * table.num_rows
    kind = table["seed"].type
    if not (pa.types.is_integer(kind) or table["seed"].null_count == table.num_rows):
        raise PromptError(f"column 'seed' holds {kind}, expected whole numbers (int64)")
    values = table["seed"].to_pylist()
    for index, value in enumerate(values):
        if value is not None and not 0 <= value < 2**63:
            problems["seed is outside 0 to 2^63 - 1"].append(index)
    return values
