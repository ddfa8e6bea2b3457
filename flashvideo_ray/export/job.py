"""An export from beginning to end: what belongs in the dataset, what of it is there, the shards that are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.export import card, formats, preference, samples, shards
from flashvideo_ray.export.destination import Destination, stem
from flashvideo_ray.export.options import SUFFIX, ExportError, Options
from flashvideo_ray.export.samples import Found
from flashvideo_ray.export.writing import ShardWriter, media_key
from flashvideo_ray.graph import candidates, finish
from flashvideo_ray.graph.standing import Standing
from flashvideo_ray.ledger import run_file
from flashvideo_ray.ledger.claim import Claim
from flashvideo_ray.ledger.holder import Identity
from flashvideo_ray.ledger.patience import PatientStore
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import Settings

RAY_BYTES = 10_000_000_000  # of shards: what one process writes in some minutes
_BATCH = 10_000  # rows that are Python objects at a time
Progress = Callable[[int, int], object]
"""Told of shards written and of all there are to write."""


@dataclass
class Exported:
    """What an export did. `rows` are those in the dataset now, without the `withdrawn` ones that its shards still hold.

    `gaps` counts what is wanted and could not be had, `new_columns` are those that the run has got since the dataset
    was begun: they are not in it.
    """

    url: str
    added: int
    shards: int
    bytes: int
    rows: int
    splits: dict[str, int]
    withdrawn: int
    gaps: dict[str, int] = field(default_factory=dict)
    new_columns: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """What to tell whoever asked for it."""
        if self.shards:
            yield f"{self.added:,} rows in {self.shards:,} shards, {self.bytes / 1e6:,.1f} MB."
        else:
            yield "Nothing new."
        splits = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
        yield f"{self.url}: {self.rows:,} rows ({splits}); README.md says what they are."
        if self.withdrawn:
            yield f"{self.withdrawn:,} rows of its shards belong in it no more: withdrawn.parquet names them."
        for reason, count in self.gaps.items():
            yield f"{count:,} candidates left out: {reason}."
        if self.new_columns:
            yield f"Not in it, as the run had them not when it was begun: {', '.join(self.new_columns)}."


def export(
    output: str,
    dest: str,
    options: Options,
    *,
    on_ray: bool | None = None,
    takeover: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Bring a run's dataset up to date: shards are added, none is written again.

    Args:
        output: the run. It may go on meanwhile.
        dest: any fsspec URL; the dataset there must have been made by the same options.
        on_ray: whether tasks of Ray write the shards; None where there is much to write.
        takeover: take DEST from an export that still holds it.

    After a kill the same call goes on where it was. Raises ExportError (RecipeError, RuleError, …) before anything is
    written, and JobError where a video is missing or damaged.
    """
    options.check()
    formats.check_libraries(options.format)
    source, target = Store(output), Store(dest)
    run = run_file.read_run(source)
    if run is None:
        raise run_file.NoRunError(f"{source.url}: no run here (no run.json)")
    if source.is_same_place(target):
        raise ExportError(f"{dest} is the run itself; name another place")
    settings = finish.settings_of(source, run)
    recipe = options.recipe(source.url)
    place = Destination(target, "pair_id" if options.format == "preference" else "clip_id")
    place.check(recipe)
    run_file.check_writable(target)
    sizes = source.sizes(options.media_of) if options.has_media else {}
    found = _found(candidates.read(source, settings), options, settings, sizes)
    formats.check_columns(options.format, found.rows.schema)
    if not found.rows.num_rows and place.recipe() is None:
        raise ExportError(f"{source.url}: nothing to export: {_why_nothing(found)}")
    with Claim(target, Identity.of_this_process(), takeover=takeover) as claim:
        schema = place.open(recipe, found.rows.schema)
        patience = settings.store_patience_seconds
        writer = ShardWriter(
            PatientStore(output, patience),
            PatientStore(dest, patience),
            options.format,
            place.key,
            found.media if options.has_media else (),
            options.copy_media,
        )
        before = place.index().num_rows
        sizes_of_new = []
        rows = _as(found.rows, schema)
        while plan := place.pending() or _begun(place, rows, found, options, sizes):
            work = _work(plan, place.whole(), found, rows)
            is_large = len(work) * options.shard_bytes >= RAY_BYTES
            for size in _write(writer, work, is_large if on_ray is None else on_ray):
                claim.check()
                sizes_of_new.append(size)
                if progress is not None:
                    progress(len(sizes_of_new), len(work))
            place.end()
        index = place.index()
        present = pa.array(found.rows[place.key].to_pylist(), pa.string())
        is_present = pc.is_in(index[place.key], present)
        gone = place.withdraw(index.filter(pc.invert(is_present)), found.why, found.otherwise)
        live = index.filter(is_present)
        new_columns = tuple(name for name in found.rows.column_names if name not in schema.names)
        facts = card.Facts(
            run=run,
            source=source.url,
            settings=settings,
            summary=finish.summary_of(source, settings, Standing.read(source, settings)),
            options=options,
            schema=schema,
            found=found,
            index=index,
            live=live,
            withdrawn=gone,
            new_columns=new_columns,
        )
        card.write(target, facts)
    return Exported(
        url=target.url,
        added=index.num_rows - before,
        shards=len(sizes_of_new),
        bytes=sum(sizes_of_new),
        rows=live.num_rows,
        splits={name: live["split"].to_pylist().count(name) for name in options.splits},
        withdrawn=gone.num_rows,
        gaps=found.gaps,
        new_columns=new_columns,
    )


def _found(table: pa.Table, options: Options, settings: Settings, sizes: Mapping[str, int]) -> Found:
    """What belongs in the dataset now."""
    if options.format == "preference":
        return preference.pairs(table, options, settings.select, sizes)
    found = samples.samples(table, options, sizes if options.has_media else None)
    if options.copy_media:
        copies = [media_key(name) for name in found.rows["clip_id"].to_pylist()]
        found.rows = found.rows.append_column("video", pa.array(copies, pa.string()))
    return found


def _begun(
    place: Destination, rows: pa.Table, found: Found, options: Options, sizes: Mapping[str, int]
) -> dict[str, list[str]]:
    """The plan of the rows that are in no shard yet, which is DEST's now; empty where there are none."""
    plan = _plan(place, rows, found, options, sizes)
    if plan:
        place.begin(plan)
    return plan


def _plan(
    place: Destination, rows: pa.Table, found: Found, options: Options, sizes: Mapping[str, int]
) -> dict[str, list[str]]:
    """Shards of the rows that are in none yet."""
    fresh = pc.invert(pc.is_in(rows[place.key], place.index()[place.key].combine_chunks()))
    rows, media = rows.filter(fresh), found.rows.filter(fresh)
    embedded = found.media if options.embeds else ()
    columns = [[sizes[key] for key in media[medium.key].to_pylist()] for medium in embedded]
    sizes_of = iter(zip(*columns, strict=True)) if columns else repeat(())
    items = [
        shards.Item(row[place.key], row["split"], formats.row_bytes(options.format, row, next(sizes_of)))
        for batch in rows.to_batches(_BATCH)
        for row in batch.to_pylist()
    ]
    begin = Counter(stem(shard).rpartition("-")[0] for shard in place.whole())
    base, suffix = formats.base_bytes(options.format), SUFFIX[options.format]
    return shards.pack(items, options.shard_bytes, base, suffix, begin)


Work = list[tuple[str, pa.Table, pa.Table]]


def _work(plan: dict[str, list[str]], whole: set[str], found: Found, rows: pa.Table) -> Work:
    """The shards that are not whole yet, each with its rows as they are now.

    Of an export that was killed, some may have left the dataset meanwhile: their shard is written without them.
    """
    at = {key: number for number, key in enumerate(rows[found.key].to_pylist())}
    work = []
    for shard, keys in plan.items():
        if shard not in whole:
            places = pa.array([at[key] for key in keys if key in at], pa.int64())
            work.append((shard, rows.take(places), found.rows.take(places)))
    return work


def _write(writer: ShardWriter, work: Work, on_ray: bool) -> Iterator[int]:
    """Write the shards, and give the size of each when it is whole."""
    if not on_ray:
        for shard, rows, keys in work:
            yield writer(shard, rows, keys)
        return
    import ray

    from flashvideo_ray.graph import cluster
    from flashvideo_ray.settings import Pools

    cluster.connect(Pools(), ())
    task = ray.remote(ShardWriter.__call__).options(num_cpus=1, max_retries=3)
    shared = ray.put(writer)
    waiting = iter(work)
    most = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    running: list[Any] = []
    while True:
        running += [task.remote(shared, *each) for each in islice(waiting, most - len(running))]
        if not running:
            return
        done, running = ray.wait(running)
        yield from ray.get(done)


def _as(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with the columns that the dataset has had from its beginning."""
    columns = []
    for column in schema:
        if column.name not in rows.column_names:
            columns.append(pa.nulls(rows.num_rows, column.type))
            continue
        try:
            columns.append(rows[column.name].cast(column.type))
        except pa.ArrowException as error:
            raise ExportError(
                f"the column {column.name} was {column.type} when the dataset was begun and is "
                f"{rows[column.name].type} now ({error}); name another DEST"
            ) from None
    return pa.table(columns, schema=schema)


def _why_nothing(found: Found) -> str:
    """What became of the most candidates."""
    counts = Counter(reason.partition(" (")[0] for reason in found.why.values())
    most = (f"{reason}: {count:,} candidates" for reason, count in counts.most_common(3))
    return "; ".join(most) or "the run has no candidates"
