"""Prompts: read from any fsspec URL, and checked as a whole before a GPU is touched.

`files` makes one table of whatever lies at a URL (`formats`: of one file), `checking` names and seeds its rows, `part`
takes some of them, `text` shows them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import pyarrow as pa

from flashvideo_ray.prompts import files
from flashvideo_ray.prompts.checking import (
    CANDIDATE,
    OWN_COLUMNS,
    PREVIEW_URL,
    PROMPTS,
    Duplicates,
    check,
    checked,
    codes,
    digest,
    same_values,
)
from flashvideo_ray.prompts.files import filled
from flashvideo_ray.prompts.part import Part
from flashvideo_ray.prompts.rows import SHOWN, PromptError
from flashvideo_ray.prompts.text import visible

__all__ = [
    "CANDIDATE",
    "OWN_COLUMNS",
    "PREVIEW_URL",
    "PROMPTS",
    "SHOWN",
    "Duplicates",
    "PromptError",
    "checked",
    "codes",
    "digest",
    "filled",
    "read_prompts",
    "same_values",
    "visible",
]


def read_prompts(
    url: str,
    *,
    base_seed: int = 0,
    reserved: Iterable[str] = (),
    duplicates: Duplicates = "refuse",
    span: int = 1,
    columns: Mapping[str, str] | None = None,
    only: str | None = None,
) -> pa.Table:
    """Read and check prompts.

    `url` is a file, a folder or a glob of them, at any fsspec URL, `hf://datasets/…` among them: Parquet, `.jsonl`,
    `.csv`, `.tsv`; `.json` (an array of objects or of texts) and `.txt` (a prompt a line), which are not taken from a
    folder unless a glob asks for them; all but Parquet also with `.gz` or `.zst`. Column `prompt` is required; `id`
    (text or whole number, unique), `seed` (whole number from 0 to 2^63 - 1) and `negative_prompt` are optional;
    `columns` says what they are called in the files, where it is something else. All others are carried along, and so
    are the keys of folders such as `date=2026-11-25`, as text. A missing id is derived from the text, a missing seed
    from `base_seed` and the id, so that neither depends on the order of rows.

    `reserved` are patterns of names, such as `score_*`, that a carried column may not have.

    Rows with the same text and seed would make the same clips. `duplicates` says what becomes of them: `refuse` all,
    `drop` all but the first, or give each a `seed` of its own. To the last two, rows are the same whose candidates
    would share a seed: those of a row take `span` seeds, from its own on. `only` takes a part of what all rows give: a
    condition over the columns and the id, or ids (see `Part.parse`).

    Where there is a column `candidate`, each row is that one candidate of its prompt, which has this very seed; rows of
    one id are candidates of one prompt.

    Where there is a column `preview_url`, each row's preview exists already and is there; rows of one prompt with other
    URLs are its candidates, whose numbers are added. An id that is missing is then derived from the texts alone.

    Returns a table with the columns of PROMPTS and the carried ones. Raises PromptError with every kind of problem
    found, or RuleError if `only` cannot be read.
    """
    part = Part.parse(only) if only is not None else None
    table, rows = files.read(url, columns)
    carried = [name for name in table.column_names if name not in {*OWN_COLUMNS, CANDIDATE}]
    patterns = [*reserved]
    clashes = sorted(name for name in carried if any(fnmatchcase(name, pattern) for pattern in patterns))
    if clashes:
        raise PromptError(f"{url}: column {', '.join(clashes)} has a name that the ledger uses; rename or drop it")
    return check(table, rows, base_seed, url, duplicates, part, span)
