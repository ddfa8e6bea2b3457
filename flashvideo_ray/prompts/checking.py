"""Prompts as they are used: named, seeded, and each problem of the whole table told at once.

Columns stay in Arrow; only what is hashed passes through Python, some thousands of rows at a time.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flashvideo_ray.prompts.part import Part
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
CANDIDATE = "candidate"  # a column of rows that are one candidate each
PREVIEW_URL = "preview_url"  # a column of rows whose preview exists already: each is one candidate of its prompt
_BATCH = 65_536  # rows that are Python objects at a time
_NULL = b"no text:"  # in the place of a digest
_WHITE = "".join(char for char in map(chr, range(0x3001)) if char.isspace())
_SURVIVE = (pa.types.is_string, pa.types.is_boolean, pa.types.is_integer, pa.types.is_float64, pa.types.is_null)
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
    table: pa.Table,
    rows: Rows,
    base_seed: int,
    url: str,
    duplicates: Duplicates = "refuse",
    part: Part | None = None,
    span: int = 1,
) -> pa.Table:
    """The columns of PROMPTS and the carried ones. See `read_prompts`; `url` and `rows` are for its messages.

    A `part` is taken of what all rows would give: ids, seeds and what is dropped do not depend on it. What is
    wrong with rows outside of it is nobody's concern.
    """
    problems: dict[str, NDArray[np.bool_]] = {}
    prompts = _texts(table, "prompt", problems, required=True)
    negatives = _texts(table, "negative_prompt", problems)
    given = _ids(table, problems)
    seeds = _seeds(table, problems)
    number = _candidates(table, problems) if CANDIDATE in table.column_names else None
    previews = _previews(table, problems) if PREVIEW_URL in table.column_names else None

    # Of two rows with the same text, only those with their own seed are different candidates; or, where previews exist,
    # candidates of one prompt.
    apart = _nothing(table, pa.int64()) if previews is not None else seeds
    ids = _filled(given, pa.string(), lambda *row: digest(*row)[:12], prompts, negatives, apart)
    final_seeds = _filled(seeds, pa.int64(), lambda name: _seed_of(base_seed, name), ids)
    before = _first_alike(prompts, negatives, final_seeds, previews)
    if duplicates != "refuse" and span > 1 and number is None:
        before = _first_near(prompts, negatives, final_seeds, span)
    is_repeat = before >= 0
    if duplicates == "seed" and is_repeat.any():
        ids, final_seeds = _reseeded(before, given, prompts, negatives, ids, final_seeds, base_seed)
    if previews is not None and number is None:
        number = _numbered(ids)

    own = pa.table([ids, prompts, negatives, final_seeds], schema=PROMPTS.remove_metadata())
    for field in table.schema:
        if field.name not in (*OWN_COLUMNS, CANDIDATE):
            # What a service makes of other prompts in the same run has none of them, whatever the file says.
            own = own.append_column(field.with_nullable(True), table[field.name])
    if number is not None:
        own = own.append_column(CANDIDATE, number)
    kept = ~is_repeat if duplicates == "drop" else np.ones(table.num_rows, bool)
    if part is not None:
        kept &= part.of(own, url)

    _check_unique(number, given, prompts, negatives, kept, rows, problems)
    found = {problem: np.flatnonzero(at & kept).tolist() for problem, at in problems.items()}
    lines = [f"{rows.list(indices)}: {problem}" for problem, indices in found.items() if indices]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"and {len(lines) - SHOWN} more kinds of problem"]
    if lines:
        raise PromptError(f"{url}: " + "\n".join(lines))
    repeats = np.flatnonzero(is_repeat & kept & kept[before]) if duplicates == "refuse" else np.flatnonzero(is_repeat)
    if len(repeats):
        pairs = rows.pairs([(int(before[index]), int(index)) for index in repeats])
        if duplicates == "refuse":
            raise PromptError(
                f"{url}: {pairs} are the same prompt with the same seed; drop one of each, or give each an id of its "
                "own or a seed, or set prompts.duplicates to drop or seed"
            )
        what = "were dropped" if duplicates == "drop" else "got a seed of their own"
        log.warning("%d of %d prompts repeat another one and %s: %s", len(repeats), table.num_rows, what, pairs)
    for field in table.schema:
        if field.name not in (*OWN_COLUMNS, CANDIDATE):
            _check_carried(table[field.name], field.name)
    return own if kept.all() else own.filter(pa.array(kept))


def _filled(
    column: pa.ChunkedArray, kind: pa.DataType, make: Callable[..., str | int], *of: pa.ChunkedArray
) -> pa.ChunkedArray:
    """The column, with what is made of each row's `of` where it has no value. Null is made of as an empty text."""
    if column.null_count == 0:
        return column
    rows, parts = pa.table([column, *of], names=[str(index) for index in range(len(of) + 1)]), []
    for batch in rows.to_batches(max_chunksize=_BATCH):
        old, *sources = (array.to_pylist() for array in batch.columns)
        new = [
            value if value is not None else make(*("" if cell is None else str(cell) for cell in row))
            for value, *row in zip(old, *sources, strict=True)
        ]
        parts.append(pa.array(new, kind))
    return pa.chunked_array(parts, kind)


def _first_alike(
    prompts: pa.ChunkedArray, negatives: pa.ChunkedArray, seeds: pa.ChunkedArray, previews: pa.ChunkedArray | None
) -> NDArray[np.int64]:
    """For each row the first before it with the same text, seed and preview, or -1."""
    negatives = pc.fill_null(negatives, "")
    keys = [codes(prompts), codes(negatives), seeds.to_numpy(), *([] if previews is None else [codes(previews)])]
    order = np.lexsort(keys[::-1])  # stable: of equals, the first row stays first
    starts = np.ones(len(order), bool)
    starts[1:] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
    firsts = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    before = np.full(len(order), -1)
    before[order[~starts]] = firsts[~starts]
    return before


def _first_near(
    prompts: pa.ChunkedArray, negatives: pa.ChunkedArray, seeds: pa.ChunkedArray, span: int
) -> NDArray[np.int64]:
    """For each row the first before it with the same text and a seed less than `span` away, or -1.

    Rows that have one before them are not looked at by those after them: they will be dropped, or have other seeds.
    """
    numbers = seeds.to_numpy()
    keys = np.stack([codes(prompts), codes(pc.fill_null(negatives, ""))])
    _, texts, counts = np.unique(keys, axis=1, return_inverse=True, return_counts=True)
    texts = texts.reshape(-1)
    before = np.full(len(numbers), -1)
    first: dict[tuple[int, int], int] = {}  # by text, and by the seed in steps of the span: one row has room in each
    for row in np.flatnonzero(counts[texts] > 1).tolist():
        text, step = int(texts[row]), int(numbers[row]) // span
        near = [first.get((text, step + away)) for away in (0, -1, 1)]
        alike = [other for other in near if other is not None and abs(int(numbers[other]) - int(numbers[row])) < span]
        if alike:
            before[row] = min(alike)
        else:
            first[text, step] = row
    return before


def codes(texts: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number for each text, 64 bits of its digest (a table of them would hold all again). Null is one of its own."""
    parts = [np.empty(0, np.int64)]
    for batch in _in_batches(texts):
        parts.append(np.frombuffer(b"".join(map(_code, batch.to_pylist())), np.int64))
    return np.concatenate(parts)


def _code(text: str | None) -> bytes:
    return _NULL if text is None else hashlib.blake2b(text.encode(), digest_size=8).digest()


def _reseeded(
    before: NDArray[np.int64],
    given: pa.ChunkedArray,
    prompts: pa.ChunkedArray,
    negatives: pa.ChunkedArray,
    ids: pa.ChunkedArray,
    seeds: pa.ChunkedArray,
    base_seed: int,
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Ids and seeds, of which each row that repeats one before it has its own."""
    names, numbers = ids.to_pylist(), seeds.to_pylist()
    times: dict[int, int] = defaultdict(int)
    for index in np.flatnonzero(before >= 0).tolist():
        first = int(before[index])
        times[first] += 1
        if not given[index].is_valid:
            texts = prompts[index].as_py() or "", negatives[index].as_py() or ""
            names[index] = digest(*texts, names[first], str(times[first]))[:12]
        numbers[index] = _seed_of(base_seed, names[index])
    return pa.chunked_array([names], pa.string()), pa.chunked_array([numbers], pa.int64())


def _check_unique(
    number: pa.ChunkedArray | None,
    given: pa.ChunkedArray,
    prompts: pa.ChunkedArray,
    negatives: pa.ChunkedArray,
    kept: NDArray[np.bool_],
    rows: Rows,
    problems: dict[str, NDArray[np.bool_]],
) -> None:
    """No two rows have one id, but candidates of one prompt."""
    places = np.flatnonzero(kept & _mask(given.is_valid()))
    _, first, inverse = np.unique(codes(given)[places], return_index=True, return_inverse=True)
    again = first[inverse] != np.arange(len(places))
    if not again.any():
        return

    def text(index: int) -> tuple[Any, Any]:
        return prompts[index].as_py(), negatives[index].as_py() or ""

    numbers = number.to_pylist() if number is not None else None
    taken: set[tuple[int, int | None]] = set()
    if numbers is not None:
        taken = {(int(places[place]), numbers[places[place]]) for place in first}
    for place in np.flatnonzero(again).tolist():
        index, one = int(places[place]), int(places[first[inverse[place]]])
        if numbers is not None and text(one) == text(index) and (one, numbers[index]) not in taken:
            taken.add((one, numbers[index]))
            continue
        name = given[index].as_py()
        what = "ids must be unique" if numbers is None else "rows of one id are candidates of one text, numbered apart"
        problem = f"the id {name!r} was used before ({rows.name(one)}); {what}"
        problems.setdefault(problem, np.zeros(len(kept), bool))[index] = True


def _seed_of(base_seed: int, name: str) -> int:
    return int(digest(str(base_seed), name)[:8], 16)


def _check_carried(column: pa.ChunkedArray, name: str) -> None:
    """Raise PromptError if its values do not survive the way through Python objects that rows take."""
    kind = column.type
    if any(survives(kind) for survives in _SURVIVE):
        return
    try:
        if all(same_values(pa.array(chunk.to_pylist(), kind), chunk) for chunk in _in_batches(column)):
            return
    except (ValueError, OverflowError, TypeError, pa.ArrowException):
        pass
    raise PromptError(
        f"column {name!r} holds {kind}, which cannot be carried along unchanged; turn it into text or drop it"
    )


def _in_batches(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    for chunk in column.chunks:
        for start in range(0, len(chunk), _BATCH):
            yield chunk.slice(start, _BATCH)


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


def _texts(
    table: pa.Table, name: str, problems: dict[str, NDArray[np.bool_]], required: bool = False
) -> pa.ChunkedArray:
    if name not in table.column_names:
        return _nothing(table, pa.string())
    column = table[name]
    if not (pa.types.is_string(column.type) or column.null_count == len(column)):
        raise PromptError(f"column {name!r} holds {column.type}, expected text (string)")
    column = column.cast(pa.string())
    if required:
        problems[f"{name} is null"] = _mask(column.is_null())
        problems[f"{name} is empty"] = _mask(_is_blank(column))
    _check_nul(column, name, problems)
    return column


def _nothing(table: pa.Table, kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(table.num_rows, kind)])


def _mask(truth: pa.ChunkedArray) -> NDArray[np.bool_]:
    return (
        pc.fill_null(truth, False).to_numpy(zero_copy_only=False)
        if isinstance(truth, pa.Array)
        else (pc.fill_null(truth, False).to_numpy())
    )


def _is_blank(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether a text holds nothing but what Python takes for white space. Some at a time: trimming copies them."""
    blank = [pc.equal(pc.utf8_trim(batch, _WHITE), "") for batch in _in_batches(texts)]
    return pa.chunked_array(blank, pa.bool_())


def _check_nul(column: pa.ChunkedArray, name: str, problems: dict[str, NDArray[np.bool_]]) -> None:
    problem = f"{name} holds a NUL character, where the metadata of an MP4 would end; remove it"
    problems[problem] = _mask(pc.match_substring(column, "\0"))


def _ids(table: pa.Table, problems: dict[str, NDArray[np.bool_]]) -> pa.ChunkedArray:
    if "id" not in table.column_names:
        return _nothing(table, pa.string())
    kind = table["id"].type
    if not (pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise PromptError(f"column 'id' holds {kind}, expected text or whole numbers")
    column = table["id"].cast(pa.string())
    if pa.types.is_null(kind):
        return column
    problem = "id is null; fill it, or drop the column to have ids derived from the text"
    problems[problem] = _mask(column.is_null())
    problems["id is empty"] = _mask(_is_blank(column))
    _check_nul(column, "id", problems)
    return column


def _seeds(table: pa.Table, problems: dict[str, NDArray[np.bool_]]) -> pa.ChunkedArray:
    return _whole_numbers(table, "seed", pa.int64(), 2**63 - 1, "seed is outside 0 to 2^63 - 1", problems)


def _whole_numbers(
    table: pa.Table, name: str, kind: pa.DataType, most: int, problem: str, problems: dict[str, NDArray[np.bool_]]
) -> pa.ChunkedArray:
    if name not in table.column_names:
        return _nothing(table, kind)
    column = table[name]
    if not (pa.types.is_integer(column.type) or column.null_count == table.num_rows):
        raise PromptError(f"column {name!r} holds {column.type}, expected whole numbers ({kind})")
    if column.null_count < table.num_rows:
        high = pc.greater(column.cast(pa.uint64(), safe=False), pa.scalar(most, pa.uint64()))  # below 0, too
        problems[problem] = _mask(high)
    return column.cast(kind, safe=False)


def _previews(table: pa.Table, problems: dict[str, NDArray[np.bool_]]) -> pa.ChunkedArray:
    """Where previews are that exist already."""
    column = _texts(table, PREVIEW_URL, problems)
    problems[f"{PREVIEW_URL} is null; each row has its preview, or none has"] = _mask(column.is_null())
    problems[f"{PREVIEW_URL} is empty"] = _mask(_is_blank(column))
    rooted = pc.match_substring_regex(column, r"^(/|[A-Za-z][A-Za-z0-9+.-]*:)")
    relative = pc.and_(pc.invert(rooted), pc.invert(_is_blank(column)))
    problems[f"{PREVIEW_URL} is a relative path, which no worker can find; write a URL, or the path from the root"] = (
        _mask(relative)
    )
    return column


def _numbered(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which of the rows of its prompt each is, from 0."""
    seen: dict[str, int] = defaultdict(int)
    numbers = []
    for name in ids.to_pylist():
        numbers.append(seen[name])
        seen[name] += 1
    return pa.chunked_array([numbers], pa.int32())


def _candidates(table: pa.Table, problems: dict[str, NDArray[np.bool_]]) -> pa.ChunkedArray:
    """A row that is one candidate says which, with its id and its seed: `flashvideo-ray list --parquet` writes such."""
    missing = [name for name in ("id", "seed") if name not in table.column_names]
    if missing:
        raise PromptError(
            f"rows with a {CANDIDATE} need {' and '.join(missing)}, too: they are to be made again as they were"
        )
    number = _whole_numbers(table, CANDIDATE, pa.int32(), 2**31 - 1, f"{CANDIDATE} is no number from 0", problems)
    problems[f"{CANDIDATE} is null; each row is one candidate, or none is"] = _mask(number.is_null())
    problems[f"seed is null, and the row is the {CANDIDATE} of a seed"] = _mask(table["seed"].is_null())
    return number
