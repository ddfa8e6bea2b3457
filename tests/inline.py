"""Ray Data's part in a run, done in this process: each stage in order, a row at a time, models loaded once.

Actors that load torch and a model take most of the time of a test that is about the ledger, selection or quotas. What
stands for a `Dataset` here has the methods that the graph calls; the graph, the job, the tracker's actor are the real
ones. What is shown so is shown once more with actors: `test_pipeline`, `test_selecting`, `test_resume`, `test_chaos`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest
import ray

Step = Callable[[pa.Table], pa.Table | Iterable[pa.Table]]


class InlineDataset:
    """Rows, and what is to be done to each."""

    def __init__(self, rows: Sequence[pa.Table], steps: tuple[Step, ...] = ()):
        self._rows, self._steps = rows, steps

    def map_batches(
        self, step: Any, *, fn_constructor_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> InlineDataset:
        made = step(**(fn_constructor_kwargs or {})) if isinstance(step, type) else step
        return InlineDataset(self._rows, (*self._steps, made))

    def repartition(self, **options: Any) -> InlineDataset:
        return self

    def drop_columns(self, names: list[str], **options: Any) -> InlineDataset:
        return InlineDataset(self._rows, (*self._steps, lambda rows: rows.drop_columns(names)))

    def iter_batches(self, **options: Any) -> Iterator[pa.Table]:
        for table in self._rows:
            for number in range(table.num_rows):
                yield from _through(table.slice(number, 1), self._steps)


def _through(rows: pa.Table, steps: tuple[Step, ...]) -> Iterator[pa.Table]:
    """What becomes of a block: the rest is done with each block that a step makes of it, before the step goes on."""
    if not steps:
        if rows.num_rows:
            yield rows
        return
    made = steps[0](rows)
    for block in [made] if isinstance(made, pa.Table) else made:
        yield from _through(block, steps[1:])


@contextmanager
def stages_inline() -> Iterator[None]:
    """While this lasts, datasets are those of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.data.from_arrow_refs", lambda pieces: InlineDataset(ray.get(pieces)))
        yield
