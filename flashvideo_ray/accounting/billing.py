"""The bill of a run: what each stage cost, what a clip cost, and what selection saved. Pure functions over the ledger.

The unit of work is a second of one device: a card where a stage runs on cards (times the `num_gpus` of its pool, which
may be a share), a core where it runs on CPUs (times the cores that a call of its pool can use: the whole ones of
`num_cpus`, and at least one); wall time, not processor time. The two are never added up. Money is that, in hours, times
the price of the device in the settings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from flashvideo_ray.accounting.summary import by_value, counts, finite, statuses, with_clip, without_preview
from flashvideo_ray.settings import STAGES, DevicePrice, Settings, Stage

if TYPE_CHECKING:
    from flashvideo_ray.accounting.estimates import Operations

Unit = Literal["GPU", "CPU"]


@dataclass(frozen=True)
class Cost:
    """Work of cards, work of cores, and money: None where nothing of it has a price."""

    gpu_seconds: float = 0.0
    cpu_seconds: float = 0.0
    money: float | None = None

    def __add__(self, other: Cost) -> Cost:
        priced = [money for money in (self.money, other.money) if money is not None]
        money = math.fsum(priced) if priced else None
        return Cost(self.gpu_seconds + other.gpu_seconds, self.cpu_seconds + other.cpu_seconds, money)

    def __mul__(self, times: float) -> Cost:
        money = None if self.money is None else self.money * times
        return Cost(self.gpu_seconds * times, self.cpu_seconds * times, money)

    @property
    def unit(self) -> Unit:
        """What it is counted in: cards, if there are any."""
        return "GPU" if self.gpu_seconds else "CPU"

    @property
    def seconds(self) -> float:
        """In its unit."""
        return self.gpu_seconds or self.cpu_seconds


@dataclass(frozen=True)
class Line:
    """One stage on one device."""

    stage: Stage
    device: str | None  # None: the ledger does not say
    unit: Unit
    count: int  # calls that have a time
    seconds: float  # of calls
    device_seconds: float  # of cards or cores
    price: float | None  # of one card or core for an hour
    money: float | None

    @property
    def cost(self) -> Cost:
        """The same, to add up."""
        if self.unit == "GPU":
            return Cost(gpu_seconds=self.device_seconds, money=self.money)
        return Cost(cpu_seconds=self.device_seconds, money=self.money)


@dataclass(frozen=True)
class Saving:
    """What was not spent, beside what was. Shares are of what everything would have cost; None without a price."""

    spared: int  # candidates that were not refined
    cost: Cost
    share: float | None  # of device-seconds
    money_share: float | None


@dataclass(frozen=True)
class SingleStage:
    """A model, not a measurement: all candidates drawn at full size by the stage-1 network alone.

    `operations` are floating-point operations of the transformers. The cost takes as many operations a second as stage
    1 was seen to do.
    """

    operations: float
    two_stages: float  # operations of this run
    cost: Cost
    share: float  # of the single stage's operations that two stages saved
    released: bool  # the released networks stand in for a model that is not here


@dataclass(frozen=True)
class PoolUse:
    """A pool over all jobs of the run: held from an actor's first work to the job's end."""

    held_seconds: float
    busy_seconds: float
    idle_share: float
    held_money: float | None  # what holding it cost, at work or not


@dataclass(frozen=True)
class Bill:
    """What a run cost. `per_clip` is everything, rejected previews too, over the clips that came of it."""

    currency: str
    lines: tuple[Line, ...]
    total: Cost
    clips: int
    per_clip: Cost | None
    rejected: int
    rejected_cost: Cost  # their previews and scores
    audited: int
    audit_cost: Cost  # refining rejected ones to see what they would have been
    failed: int
    failed_cost: Cost  # their calls that failed, and what it took to get there where no preview came of it
    refine_everything: Saving | None
    single_stage: SingleStage | None
    pools: dict[str, PoolUse]
    notes: tuple[str, ...]


def bill(
    previews: pa.Table,
    clips: pa.Table,
    settings: Settings,
    pools: Mapping[str, Mapping[str, float]] | None = None,
    operations: Operations | None = None,
) -> Bill:
    """The bill of a run.

    Args:
        previews, clips: the ledger's tables.
        settings: pools and prices, of the run's last job.
        pools: `held_seconds` and `busy_seconds` by stage, of all jobs.
        operations: `estimates.Operations` of the settings, for the comparison with a single stage.
    """
    devices = _devices(previews, clips, settings)
    lost = without_preview(previews, clips)
    lines = _lines([previews, lost], clips, settings, devices)
    total = _sum(lines)
    status = statuses(previews, clips)
    ended = counts(status["status"])
    rendered = ended.get("rendered", 0)
    out = status.filter(pc.equal(status["status"], "rejected"))["clip_id"].combine_chunks()
    refused = previews.filter(pc.is_in(previews["clip_id"], out))
    again = clips.filter(pc.and_(pc.is_in(clips["clip_id"], out), pc.is_valid(_column(clips, "clip"))))
    well = with_clip(clips)
    refines = _lines([], clips.filter(well), settings, devices)
    failed = clips.filter(pc.and_(pc.equal(clips["status"], "failed"), pc.invert(well)))
    spared = len(out) - again.num_rows
    return Bill(
        currency=settings.prices.currency,
        lines=tuple(lines),
        total=total,
        clips=rendered,
        per_clip=total * (1 / rendered) if rendered else None,
        rejected=len(out),
        rejected_cost=_sum(_lines([refused], clips.slice(0, 0), settings, devices)),
        audited=again.num_rows,
        audit_cost=_sum(_lines([], again, settings, devices)),
        failed=ended.get("failed", 0),
        failed_cost=_sum(_lines([lost], failed, settings, devices)),
        refine_everything=saving(total, spared, mean_cost(refines)),
        single_stage=_single_stage(lines, operations, previews.num_rows),
        pools={stage: _use(stage, use, lines, settings) for stage, use in (pools or {}).items() if use["held_seconds"]},
        notes=tuple(_notes(lines, settings)),
    )


def saving(spent: Cost, spared: int, each: Cost | None) -> Saving | None:
    """What not refining `spared` candidates saved, at what `each` refine costs: against refining everything.

    Rendering every candidate at full size and filtering last is the same thing. None where nothing tells what a refine
    costs.
    """
    if each is None:
        return None
    saved = each * spared
    everything = spent + saved
    money = None
    if saved.money is not None and spent.money is not None and everything.money:
        money = saved.money / everything.money
    seconds = spent.gpu_seconds + saved.gpu_seconds if saved.unit == "GPU" else spent.cpu_seconds + saved.cpu_seconds
    return Saving(spared, saved, saved.seconds / seconds if seconds else None, money)


def mean_cost(lines: Iterable[Line]) -> Cost | None:
    """What one call costs; None where there was none."""
    lines = list(lines)
    count = sum(line.count for line in lines)
    return _sum(lines) * (1 / count) if count else None


def line(stage: Stage, device: str | None, seconds: float, count: int, settings: Settings) -> Line:
    """One line of a bill: calls of a stage and their seconds in all, on a device (None: not known) of its pool."""
    pool = getattr(settings.pools, stage)
    on_cpu = device.lower().startswith("cpu") if device is not None else not pool.num_gpus
    units = pool.cores if on_cpu else settings.pools.cards(stage) or 1
    found = price_of(device, settings.prices.devices)
    price = None
    if found is not None:
        price = found.spot if pool.spot and found.spot is not None else found.on_demand
    used = units * seconds
    money = None if price is None else used / 3600 * price
    return Line(stage, device, "CPU" if on_cpu else "GPU", count, seconds, used, price, money)


def held_cost(stage: Stage, seconds: float, settings: Settings) -> Cost:
    """What it costs to hold actors of a pool for so many seconds in all, at work or not."""
    pool = getattr(settings.pools, stage)
    device = settings.pools.where(stage).accelerator_type if pool.num_gpus else "cpu"
    return line(stage, device, seconds, 0, settings).cost


def price_of(device: str | None, prices: Mapping[str, DevicePrice]) -> DevicePrice | None:
    """The price of a device: of the longest key that it is named by. `L4` is not `L40S`."""
    fitting = [key for key in prices if device and is_named(device, key)]
    return prices[max(fitting, key=len)] if fitting else None


def is_named(device: str, key: str) -> bool:
    """Whether a key is a whole word, or several, of a device's name."""
    return re.search(rf"(?<![a-z0-9]){re.escape(key.lower())}(?![a-z0-9])", device.lower()) is not None


def _lines(
    previewed: Sequence[pa.Table], clips: pa.Table, settings: Settings, devices: Mapping[Stage, str | None]
) -> list[Line]:
    """Stages in their order; one that ran on several kinds of devices has a line for each.

    `previewed` are tables with the seconds of all stages but refine. Calls that failed count as others do.
    """
    found = []
    for stage in STAGES:
        calls: dict[str | None, tuple[int, float]] = {}
        for table in [clips] if stage == "refine" else previewed:
            for device, (count, seconds) in _times(table, stage, devices[stage]).items():
                before = calls.get(device, (0, 0.0))
                calls[device] = before[0] + count, before[1] + seconds
        found += [line(stage, device, seconds, count, settings) for device, (count, seconds) in calls.items()]
    return found


def _times(table: pa.Table, stage: Stage, device: str | None) -> dict[str | None, tuple[int, float]]:
    """Calls of a stage and their seconds, by device. Only preview and refine have theirs in the ledger."""
    times = _column(table, f"{stage}_seconds")
    if stage not in ("preview", "refine"):
        values = finite(times)
        return {device: (len(values), math.fsum(values))} if len(values) else {}
    return {name: (len(values), math.fsum(values)) for name, values in by_value(_column(table, "device"), times)}


def _devices(previews: pa.Table, clips: pa.Table, settings: Settings) -> dict[Stage, str | None]:
    """What each stage runs on: as the ledger says, as the pool says, or as a pool on the same nodes has it.

    A pool with cards that says nothing of its nodes is on the run's kind of card, where the ledger knows one kind.
    """
    found: dict[Stage, str | None] = {}
    anywhere = set[str]()
    stage: Stage
    for stage, table in (("preview", previews), ("refine", clips)):
        timed = table.filter(pc.is_valid(_column(table, f"{stage}_seconds")))
        names = [name for name in counts(_column(timed, "device").drop_null()) if name]
        found[stage] = names[0] if names else None
        if getattr(settings.pools, stage).num_gpus:
            anywhere.update(names)
    for stage in STAGES:
        pool, where = getattr(settings.pools, stage), settings.pools.where(stage)
        if found.get(stage) is None:
            found[stage] = where.accelerator_type if pool.num_gpus else "cpu"
        for other in ("preview", "refine"):
            like = settings.pools.where(other)
            if found[stage] is None and (like is where or (where.labels and where.labels == like.labels)):
                found[stage] = found[other]
        if found[stage] is None and not where.labels and len(anywhere) == 1:
            [found[stage]] = anywhere
    return found


def _single_stage(lines: Iterable[Line], operations: Operations | None, candidates: int) -> SingleStage | None:
    """The model of a single stage, from what stage 1 cost a candidate."""
    lines = list(lines)
    each = mean_cost(one for one in lines if one.stage == "preview")
    if operations is None or each is None:
        return None
    refined = sum(one.count for one in lines if one.stage == "refine")
    single = candidates * operations.single
    both = candidates * operations.preview + refined * operations.refine
    cost = each * (candidates * operations.single / operations.preview)
    return SingleStage(single, both, cost, 1 - both / single, operations.released)


def _use(stage: str, use: Mapping[str, float], lines: Iterable[Line], settings: Settings) -> PoolUse:
    held, busy = use["held_seconds"], min(use["busy_seconds"], use["held_seconds"])
    own = [one for one in lines if one.stage == stage]
    money = None
    if own:
        most = max(own, key=lambda one: one.device_seconds)
        money = line(most.stage, most.device, held, 0, settings).money
    return PoolUse(held, busy, 1 - busy / held, money)


def _notes(lines: Iterable[Line], settings: Settings) -> Iterable[str]:
    """What a reader must know to trust the sums."""
    if not settings.prices.devices:
        return
    missing: dict[str, list[str]] = {}
    for one in lines:
        if one.price is None:
            missing.setdefault(one.device or "an unknown device", []).append(one.stage)
    for device, stages in missing.items():
        yield f"{', '.join(stages)} on {device}: no price in prices.devices, so not in the sums of money"


def _sum(lines: Iterable[Line]) -> Cost:
    return sum((one.cost for one in lines), Cost())


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column, or nulls where the table has none."""
    if name in table.column_names:
        return table[name]
    return pa.chunked_array([pa.nulls(table.num_rows)])


def as_dict(found: Bill) -> dict[str, Any]:
    """Plain JSON values, rounded to what is known."""
    return _plain(asdict(found))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if abs(value) < 1e9 else value
    return value
