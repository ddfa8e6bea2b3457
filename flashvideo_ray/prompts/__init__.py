"""Prompts: read from any fsspec URL, and checked as a whole before a GPU is touched.

`files` makes one table of whatever lies at a URL, `checking` names and seeds its rows, `text` shows them.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import pyarrow as pa

from flashvideo_ray.prompts import files
from flashvideo_ray.prompts.checking import OWN_COLUMNS, PROMPTS, Duplicates, check, checked, digest, same_values
from flashvideo_ray.prompts.files import filled
from flashvideo_ray.prompts.rows import SHOWN, PromptError
from flashvideo_ray.prompts.text import visible

__all__ = [
    "OWN_COLUMNS",
    "PROMPTS",
    "SHOWN",
    "Duplicates",
    "PromptError",
    "checked",
    "digest",
    "filled",
    "read_prompts",
    "same_values",
    "visible",
]


def read_prompts(
    url: str, *, base_seed: int = 0, reserved: Iterable[str] = (), duplicates: Duplicates = "refuse"
) -> pa.Table:
    """Read and check prompts.

    `url` is a Parquet file, a folder or a glob of them (also `.jsonl` and `.csv`), at any fsspec URL. Column `prompt`
    is required; `id` (text or whole number, unique), `seed` (whole number from 0 to 2^63 - 1) and `negative_prompt`
    are optional; all others are carried along, and so are the keys of folders such as `date=2026-11-25`, as text. A
    missing id is derived from the text, a missing seed from `base_seed` and the id, so that neither depends on the
    order of rows.

    `reserved` are patterns of names, such as `score_*`, that a carried column may not have.

    Rows with the same text and seed would make the same clips. `duplicates` says what becomes of them: `refuse` all,
    `drop` all but the first, or give each a `seed` of its own.

    Returns a table with the columns of PROMPTS and the carried ones. Raises PromptError with every kind of problem
    found.
    """
    table, rows = files.read(url)
    carried = [name for name in table.column_names if name not in OWN_COLUMNS]
    patterns = [*reserved]
    clashes = sorted(name for name in carried if any(fnmatchcase(name, pattern) for pattern in patterns))
    if clashes:
        raise PromptError(f"{url}: column {', '.join(clashes)} has a name that the ledger uses; rename or drop it")
    return check(table, rows, base_seed, url, duplicates)
