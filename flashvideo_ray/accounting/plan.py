"""What a run will cost, before a GPU is paid for: clips, hours, money, and whether the two pools are in balance.

A prediction from a few numbers: candidates, seconds a call in each stage, and the share of previews that survive.
Pools work side by side, so the slowest one decides; what comes before its first row and after its last is added.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from flashvideo_ray.accounting import balance, billing, estimates
from flashvideo_ray.accounting.card import Card
from flashvideo_ray.engines import weights
from flashvideo_ray.errors import InputError
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import BALANCED, STAGES, Settings, Stage

PAPER_SECONDS: dict[Stage, float] = {"preview": 30.1, "refine": 72.2}
"""arXiv 2502.05179: evaluations of the networks alone, 50 steps at 270p and 4 at 1080p, 49 frames, one card."""


class PlanError(InputError):
    """A plan needs what nobody said. The message names the option."""


@dataclass(frozen=True)
class Measures:
    """What a plan rests on: seconds a call, the share of previews that survive, and where both are from."""

    seconds: dict[Stage, float]
    source: str
    keep_rate: float | None = None
    devices: dict[Stage, str] | None = None


@dataclass(frozen=True)
class PoolPlan:
    """One pool: how many calls, how much work, and how much of its time it will have nothing to do."""

    stage: Stage
    size: int
    calls: int
    seconds: float | None  # a call; None: not known, and taken as 0
    work_seconds: float  # of actors
    idle_share: float | None
    money: float | None  # of holding the pool for as long as the run takes


@dataclass(frozen=True)
class Split:
    """The fixed sizes that make the run the shortest on so many cards, or cores where the pools ask for no card."""

    cards: float
    preview: int
    refine: int
    seconds: float  # start to end, as `Plan.wall_seconds`


@dataclass(frozen=True)
class TextPlace:
    """Where the text encoder could be, and what holding that place costs for as long as the run takes."""

    where: str
    seconds: float  # of a prompt
    source: str  # of the seconds
    hours: float  # of the run: longer where the encoder is what it waits for
    money: float | None


@dataclass(frozen=True)
class Plan:
    """A run before it is made. `cost` is of the work alone, `held_money` of the pools from start to end."""

    prompts: int
    candidates: int
    clips: int
    audited: int
    keep_rate: float
    keep_source: str
    seconds_source: str
    wall_seconds: float
    slowest: Stage
    pools: tuple[PoolPlan, ...]
    cost: billing.Cost
    per_clip: billing.Cost | None
    held_money: float | None
    refine_everything: billing.Saving | None
    operations: estimates.Operations | None
    balance: tuple[float, float]  # cards of preview to cards of refine, for one card of the smaller side
    balanced_size: int  # of refine, for the size that preview has
    split: Split | None  # None where the cards have no place for both, or where the two pools share each card
    fits: tuple[estimates.Fit, ...]
    text_places: tuple[TextPlace, ...]  # the first is what the others save against
    notes: tuple[str, ...]


def plan(
    prompts: int,
    settings: Settings,
    measures: Measures,
    keep_rate: float | None = None,
    card_memory: Mapping[str, float] | None = None,
    card: Card | None = None,
    cards: float | None = None,
) -> Plan:
    """Predict a run of so many prompts. Raises PlanError where a size is `auto` and `cards` do not say what there is.

    Args:
        prompts: how many.
        settings: of the run.
        measures: seconds a call of at least preview and refine.
        keep_rate: share of previews that survive; by default that of `measures`, or what `select.keep` implies.
        card_memory: GiB of a pool's cards, by stage; by default as Ray's `accelerator_type` of the pool says.
        card: what was measured on one; by default nothing.
        cards: for preview and refine together, any for either; by default as many as their sizes take.
    """
    card = card or Card({})
    candidates = prompts * settings.candidates
    rate, rate_source = _keep_rate(settings, measures, keep_rate)
    clips = round(candidates * rate)
    audited = round((candidates - clips) * settings.select.audit)
    stages = [stage for stage in STAGES if stage != "rate" or "rate" in settings.score.stages]
    seconds = {stage: measures.seconds.get(stage, 0.0) for stage in stages}
    calls = {stage: {"text": prompts, "refine": clips + audited}.get(stage, candidates) for stage in stages}
    split = _split(stages, calls, seconds, settings, cards)
    if settings.pools.auto:
        if split is None:
            raise PlanError(f"--cards {cards:g}: there is no place for an actor of preview and one of refine")
        settings = _sized(settings, split)
    wall, slowest = _wall(stages, calls, seconds, settings)
    devices = measures.devices or {}
    lines = {
        stage: billing.line(
            stage, _device(stage, devices, settings), calls[stage] * seconds[stage], calls[stage], settings
        )
        for stage in stages
    }
    pools = []
    for stage in stages:
        size = getattr(settings.pools, stage).actors
        work = calls[stage] * seconds[stage]
        held = billing.line(stage, lines[stage].device, size * wall, 0, settings)
        known = measures.seconds.get(stage)
        idle = 1 - work / (size * wall) if wall and known is not None else None
        pools.append(PoolPlan(stage, size, calls[stage], known, work, idle, held.money))
    cost = sum((line.cost for line in lines.values()), billing.Cost())
    held_money = [pool.money for pool in pools if pool.money is not None]
    each = (
        billing.mean_cost([lines["refine"]])
        or billing.line("refine", lines["refine"].device, seconds["refine"], 1, settings).cost
    )
    fits = fits_of(settings, card_memory or {}, card)
    ratio, balanced_size = _balance(settings, seconds, (clips + audited) / candidates if candidates else rate)
    return Plan(
        prompts=prompts,
        candidates=candidates,
        clips=clips,
        audited=audited,
        keep_rate=rate,
        keep_source=rate_source,
        seconds_source=measures.source,
        wall_seconds=wall,
        slowest=slowest,
        pools=tuple(pools),
        cost=cost,
        per_clip=cost * (1 / clips) if clips else None,
        held_money=math.fsum(held_money) if held_money else None,
        refine_everything=billing.saving(cost, candidates - clips - audited, each),
        operations=estimates.known_operations(settings),
        balance=ratio,
        balanced_size=balanced_size,
        split=split,
        fits=tuple(fits),
        text_places=tuple(_text_places(settings, prompts, wall, lines, card)),
        notes=tuple(_notes(settings, measures, lines, rate_source, fits)),
    )


def declared(text: str, others: Measures | None = None) -> Measures:
    """Measures from `preview=30.1,refine=72.2`, which go before those of another source. Raises PlanError."""
    seconds: dict[Stage, float] = {**(others.seconds if others is not None else {})}
    given = assignments(text, "--seconds")
    _check_stages(given, "--seconds", STAGES)
    seconds |= {stage: given[stage] for stage in STAGES if stage in given}
    for stage in ("preview", "refine"):
        if stage not in seconds:
            raise PlanError(f"--seconds {text}: say {stage}=… too, or name a run to take it from (--from RUN)")
    if others is None:
        return Measures(seconds, "declared with --seconds")
    return replace(others, seconds=seconds, source=f"declared with --seconds, others {others.source}")


def measured(store: Store) -> Measures:
    """Measures from another run's summary. Raises PlanError if it has no preview or no clip."""
    where = store.url
    try:
        summary = json.loads(store.get("summary.json"))
        if not isinstance(summary, dict) or "stages" not in summary:
            raise ValueError("it has no stages")
    except FileNotFoundError:
        raise PlanError(f"{where}: no summary.json; `flashvideo-ray report {where}` writes it") from None
    except ValueError as error:
        raise PlanError(
            f"{where}: summary.json is damaged ({error}); `flashvideo-ray verify {where} --repair` writes it anew"
        ) from None
    means = {stage: summary["stages"].get(stage, {}).get("mean_seconds") for stage in STAGES}
    known = {stage: mean for stage, mean in means.items() if mean is not None}
    for stage in ("preview", "refine"):
        if stage not in known:
            raise PlanError(f"{where}: it has timed no {stage}; name another run, or add --seconds {stage}=…")
    lines = summary.get("bill", {}).get("lines", [])
    devices = {line["stage"]: line["device"] for line in lines if line["device"]}
    return Measures(known, f"measured in {where}", summary.get("acceptance_rate"), devices)


def published(settings: Settings, card: Card | None = None) -> Measures:
    """Times at the paper's sizes: as measured on a card, unless a pool's is another one, or else the paper's.

    Raises PlanError for other sizes.
    """
    if not estimates.is_released(settings):
        raise PlanError(
            "how long does a call take? Name a run to take it from (--from RUN), "
            "or say it (--seconds preview=30,refine=70)"
        )
    steps = {"preview": settings.preview.num_inference_steps or 51, "refine": settings.refine.num_inference_steps or 5}
    found = {stage: (card or Card({})).seconds(stage, count) for stage, count in steps.items()}
    preview, refine = found["preview"], found["refine"]
    types = [(figure, getattr(settings.pools, stage).accelerator_type) for stage, figure in found.items()]
    others = [
        wanted
        for figure, wanted in types
        if figure and wanted and not billing.is_named(figure.card, wanted.partition("-")[0])  # `A100-80G` is an A100
    ]
    if preview is not None and refine is not None and not others:
        cards = " and ".join(dict.fromkeys((preview.card, refine.card)))
        return Measures({"preview": preview.value, "refine": refine.value}, f"measured on {cards} by benchmarks/gpu.py")
    scale = {"preview": steps["preview"] / 50, "refine": steps["refine"] / 4}
    seconds = {stage: round(value * scale[stage], 1) for stage, value in PAPER_SECONDS.items()}
    return Measures(seconds, "from the paper, scaled to these steps: networks alone, no decoding, on its cards")


def assignments(text: str, option: str) -> dict[str, float]:
    """`a=1,b=2` as numbers by name. Raises PlanError."""
    found = {}
    for part in text.split(","):
        name, separator, number = part.partition("=")
        try:
            found[name.strip()] = float(number)
        except ValueError:
            separator = ""
        if not separator or not found[name.strip()] > 0 or math.isinf(found[name.strip()]):
            raise PlanError(f"{option} {text}: write it like preview=30.1,refine=72.2")
    return found


def _check_stages(given: Mapping[str, float], option: str, stages: tuple[Stage, ...]) -> None:
    for name in given.keys() - {*stages}:
        raise PlanError(f"{option}: {name} is none of {', '.join(stages)}")


def _keep_rate(settings: Settings, measures: Measures, given: float | None) -> tuple[float, str]:
    if given is not None:
        return given, "declared with --keep-rate"
    keep = settings.select.keep
    most = min(1.0, keep / settings.candidates) if keep is not None else 1.0
    if measures.keep_rate is not None and measures.keep_rate <= most:
        return measures.keep_rate, measures.source
    if most < 1:
        return most, f"the best {keep} of {settings.candidates} (select.keep)"
    return 1.0, "nothing says how many previews survive"


def _wall(
    stages: list[Stage], calls: Mapping[Stage, int], seconds: Mapping[Stage, float], settings: Settings
) -> tuple[float, Stage]:
    """Start to end, and the stage that decides it: its own waves of calls, and one row's way before and after them."""
    totals: dict[Stage, float] = {}
    # Candidates of a prompt are judged together: the first survivor comes when all of them are there.
    together = settings.candidates if settings.select.keep is not None or settings.select.duplicates is not None else 1
    for index, stage in enumerate(stages):
        pool = getattr(settings.pools, stage)
        before = sum(
            seconds[other] * (math.ceil(together / getattr(settings.pools, other).actors) if stage == "refine" else 1)
            for other in stages[:index]
        )
        after = sum(seconds[other] for other in stages[index + 1 :] if calls[other])
        own = math.ceil(calls[stage] / pool.actors) * seconds[stage]
        totals[stage] = before + own + after if calls[stage] else 0.0
    slowest = max(totals, key=lambda stage: totals[stage])
    return totals[slowest], slowest


def _balance(settings: Settings, seconds: Mapping[Stage, float], refined: float) -> tuple[tuple[float, float], int]:
    """Cards of preview : cards of refine at which neither waits, t1 : keep x t2; and refine's size for preview's."""
    preview, refine = settings.pools.preview, settings.pools.refine
    first = seconds["preview"] * _units(settings, "preview")
    second = refined * seconds["refine"] * _units(settings, "refine")
    least = min(first, second) or max(first, second) or 1.0
    actors = preview.actors * refined * seconds["refine"] / seconds["preview"] if seconds["preview"] else refine.actors
    return (first / least, second / least), max(1, round(actors))


def _split(
    stages: list[Stage],
    calls: Mapping[Stage, int],
    seconds: Mapping[Stage, float],
    settings: Settings,
    cards: float | None,
) -> Split | None:
    """The best one of the cards. Raises PlanError where nobody says how many there are."""
    pools = settings.pools
    if pools.refine.beside == "preview" or pools.preview.beside == "refine":
        return None
    if cards is None:
        if pools.auto:
            raise PlanError(
                f"pools.{pools.auto[0]}.size: auto goes by the cards that there are; say how many (--cards 24)"
            )
        cards = sum(getattr(pools, stage).actors * _units(settings, stage) for stage in BALANCED)
    first, second = (_units(settings, stage) for stage in BALANCED)
    room = [math.floor((cards - n * first) / second + 1e-6) for n in range(math.floor(cards / first + 1e-6) + 1)]
    preview, refine = (balance.Load(calls[stage], seconds[stage]) for stage in BALANCED)
    found = balance.best(room, preview, refine)
    if found is None:
        return None
    split = Split(cards, *found, 0.0)
    return replace(split, seconds=_wall(stages, calls, seconds, _sized(settings, split))[0])


def _sized(settings: Settings, split: Split) -> Settings:
    sizes = {"preview": split.preview, "refine": split.refine}
    pools = {stage: getattr(settings.pools, stage).model_copy(update={"size": size}) for stage, size in sizes.items()}
    return settings.model_copy(update={"pools": settings.pools.model_copy(update=pools)})


def _units(settings: Settings, stage: Stage) -> float:
    """What an actor takes: cards, or cores where it asks for none. A card that others are beside is its own."""
    pool = getattr(settings.pools, stage)
    return 1.0 if settings.pools.guests(stage) else pool.num_gpus or pool.cores


def _device(stage: Stage, devices: Mapping[Stage, str], settings: Settings) -> str | None:
    pool = getattr(settings.pools, stage)
    if not pool.num_gpus:
        return "cpu"
    return settings.pools.where(stage).accelerator_type or devices.get(stage)


def _text_places(
    settings: Settings, prompts: int, wall: float, lines: Mapping[Stage, billing.Line], card: Card
) -> Iterator[TextPlace]:
    """A card of the encoder's own, a share of one of stage 1's, and as many cores as keep up."""
    seconds = estimates.text_seconds(settings, card)
    if seconds is None or not settings.pools.preview.num_gpus or not wall:
        return
    share = settings.pools.text.num_gpus if 0 < settings.pools.text.num_gpus < 1 else 0.25
    on_card, on_core = prompts * seconds["card"][0], prompts * seconds["core"][0]
    cores = math.ceil(on_core / wall)
    kinds = (
        ("a card of its own", "card", 1.0, on_card, lines["preview"].price),
        (f"{share:g} of one of preview's cards", "card", share, on_card, lines["preview"].price),
        (f"{cores} {'core' if cores == 1 else 'cores'}, as many as keep up", "core", cores, 0.0, _core_price(settings)),
    )
    for where, unit, units, work, price in kinds:
        hours = max(wall, work) / 3600
        yield TextPlace(where, *seconds[unit], hours, None if price is None else units * hours * price)


def _core_price(settings: Settings) -> float | None:
    found = billing.price_of("cpu", settings.prices.devices)
    return None if found is None else found.on_demand


def fits_of(settings: Settings, given: Mapping[str, float], card: Card) -> list[estimates.Fit]:
    """Whether each stage with a model fits its card: of so many GiB as is `given` by stage, or as its pool's type says.

    Stages whose cards nothing is known of are left out. Raises PlanError for what is no stage, ModelNotFoundError.
    """
    stages: tuple[weights.ModelStage, ...] = ("preview", "refine")
    _check_stages(given, "--card-memory", stages)
    found = []
    for stage in stages:
        pool = getattr(settings.pools, stage)
        if pool.beside in stages:
            continue  # with the other one
        beside = [other for other in stages if getattr(settings.pools, other).beside == stage]
        memory = given.get(stage, estimates.card_gib(pool.accelerator_type))
        if memory is not None:
            with suppress(estimates.NotKnownError):  # a note says so
                found.append(estimates.fit(settings, [stage, *beside], memory, card))
    return found


def _notes(
    settings: Settings,
    measures: Measures,
    lines: Mapping[Stage, billing.Line],
    rate_source: str,
    fits: Sequence[estimates.Fit],
) -> list[str]:
    notes = []
    if (unknown := estimates.not_known(settings)) is not None:
        notes.append(f"{unknown}; so neither is its memory, nor what a single stage would take")
    if rate_source == "nothing says how many previews survive":
        notes.append(
            "without --keep-rate, --from or select.keep every preview is taken to survive: the most it can cost"
        )
    untimed = [stage for stage in lines if stage not in measures.seconds]
    if untimed:
        notes.append(f"no time is known of {', '.join(untimed)}: taken as 0")
    if settings.pools.preview.num_gpus and not fits and unknown is None:
        notes.append(
            "memory not looked at: name the cards (pools.….accelerator_type) or --card-memory preview=79,refine=44"
        )
    if settings.select.draw:
        notes.append("further candidates (select.draw) are not counted: how many prompts lose all theirs is not known")
    if not settings.prices.devices:
        notes.append("no money: set prices.devices, such as {H100: {on_demand: 4.0, spot: 2.0}}")
    else:
        unpriced = [stage for stage, line in lines.items() if line.price is None and line.seconds]
        if unpriced:
            notes.append(
                f"no price for {', '.join(unpriced)}: prices.devices has none for its device, which is named by the "
                "pool's accelerator_type, or by --from"
            )
    return notes
