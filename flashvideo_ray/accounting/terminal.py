"""Bills, plans and audits as a terminal shows them."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flashvideo_ray.prompts import visible

if TYPE_CHECKING:
    from flashvideo_ray.accounting.billing import Cost
    from flashvideo_ray.accounting.plan import Plan
    from flashvideo_ray.media.inspection import Inspection
    from flashvideo_ray.selection.agreement import Audit, Share

_LEAST = 0.0001  # of money that is shown
_OWN_LINES = ("video", "sha256", "stream_sha256", "mark")  # of an inspection, in the form of a key and its value


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def money(value: float | None, currency: str) -> str:
    """`1,234.50 USD`, three digits of less than one; a dash where there is no price."""
    if value is None:
        return "–"
    if 0 < value < _LEAST:
        return f"< {_LEAST} {currency}"
    digits = 2 if value == 0 or value >= 1 else 2 - math.floor(math.log10(value))
    return f"{value:,.{digits}f} {currency}"


def percent(value: float | None) -> str:
    """`53 %`, `0.4 %`; a dash for what is not known."""
    return "–" if value is None else f"{100 * value:.2g} %" if abs(value) < 0.1 else f"{100 * value:.0f} %"


def bill_lines(bill: Mapping[str, Any]) -> Iterator[str]:
    """The few lines about money and time that end a job."""
    total, currency = bill["total"], bill["currency"]
    if not bill["lines"]:
        return
    text = f"Spent {_work(total)}"
    if total["money"] is not None:
        text += f", {money(total['money'], currency)}"
    if bill["per_clip"] is not None:
        text += f"; a rendered clip {_work(bill['per_clip'])}"
        if bill["per_clip"]["money"] is not None:
            text += f", {money(bill['per_clip']['money'], currency)}"
    yield text
    lost = bill["failed_cost"]
    if lost["gpu_seconds"] or lost["cpu_seconds"]:
        text = f"Of that, {_work(lost)}"
        if lost["money"] is not None:
            text += f", {money(lost['money'], currency)},"
        yield f"{text} for {bill['failed']:,} candidates that failed"
    saving, single = bill["refine_everything"], bill["single_stage"]
    if saving is not None and saving["spared"]:
        text = f"Saved {percent(saving['share'])} against refining everything: {_work(saving['cost'])}"
        if saving["cost"]["money"] is not None:
            text += f", {money(saving['cost']['money'], currency)}"
        yield f"{text} (estimate: {saving['spared']:,} candidates at the mean time of a refine)"
    if single is not None:
        yield f"Saved {percent(single['share'])} of the operations of a single stage (by calculation, not measured)"
    idle = ", ".join(f"{stage} {percent(use['idle_share'])}" for stage, use in bill["pools"].items())
    if idle:
        yield f"Idle share of the pools: {idle}"
    yield from bill["notes"]


def forecast_line(forecast: Mapping[str, Any], now: dt.datetime) -> str:
    """When it ends, and what is spent of what it takes, of `forecast.as_dict`: one line."""
    left = forecast["seconds_left"]
    if left is None:
        when = "the end is not known yet"
    elif not left:
        when = "nothing is left"
    else:
        at = now + dt.timedelta(seconds=left)
        when = (
            f"ends about {at:%H:%M} UTC{'' if at.date() == now.date() else f' on {at:%Y-%m-%d}'} (in {duration(left)})"
        )
    spent, expected = (_spent(forecast[name], forecast["currency"]) for name in ("spent", "expected"))
    if spent is None:
        return when
    return f"{when}; {spent} so far" + (f", about {expected} at the end" if left else "")


def _spent(cost: Mapping[str, Any] | None, currency: str) -> str | None:
    """Money where there are prices, else the work."""
    if cost is None or not (cost["gpu_seconds"] or cost["cpu_seconds"]):
        return None
    if cost["money"] is not None:
        return money(cost["money"], currency)
    hours, unit = cost["gpu_seconds"] / 3600, "GPU-hours"
    if not hours:
        hours, unit = cost["cpu_seconds"] / 3600, "core-hours"
    return f"{hours:.3g} {unit}"


def candidates_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Candidates: what became of each, why, and what it took. Columns without a value are left out."""
    columns: dict[str, list[str]] = {
        "candidate": [row["clip_id"] for row in rows],
        "of prompt": [f"{visible(row['id'])} #{row['candidate']}" for row in rows],
        "status": [row["status"] for row in rows],
        "people": [f"{row['decision']} by {visible(row['decided_by'])}" if row["decision"] else "" for row in rows],
        "rank": [_number(row["rank"]) for row in rows],
        "preview": [_number(row["preview_seconds"], "s") for row in rows],
        "refine": [_number(row["refine_seconds"], "s") for row in rows],
        "clip": [_number(row["bytes"] and row["bytes"] / 1e6, "MB") for row in rows],
        "why": [visible(_why(row)) for row in rows],
        "text": [visible(row["prompt"]) for row in rows],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), expand=True)
    for name in shown:
        right = name in ("rank", "preview", "refine", "clip")
        share = {"why": 3, "text": 2}.get(name)  # of what the others leave: a line for each candidate
        table.add_column(name, justify="right" if right else "left", ratio=share, no_wrap=True, overflow="ellipsis")
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _why(row: Mapping[str, Any]) -> str:
    if row["status"] != "failed":
        return row["reason"] or ""
    return ": ".join(part for part in (row["stage"], row["error_class"], row["error"]) if part)


def _number(value: float | None, unit: str = "") -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.3g} {unit}".rstrip()


def stages_table(summary: Mapping[str, Any]) -> Table:
    """What each stage took, of summary.json. Columns that would say nothing are left out."""
    stages, failed = summary["stages"], summary["failed_calls"]
    cards = any(numbers["gpu_seconds"] for numbers in stages.values())
    columns = ["stage", "candidates", "mean", "sum", *["failed"] * bool(failed), *["GPU-seconds"] * cards]
    table = Table(*columns, title="whole run", title_justify="left")
    for stage, numbers in stages.items():
        if not numbers["count"] and stage not in failed:
            continue
        mean = f"{numbers['mean_seconds']:.2f} s" if numbers["count"] else "–"
        cells = [stage, str(numbers["count"]), mean, _sum(numbers["seconds"])]
        if failed:
            lost = failed.get(stage)
            cells.append(f"{lost['count']:,} in {_sum(lost['seconds'])}" if lost else "")
        if cards:
            cells.append(_tenths(numbers["gpu_seconds"]))
        table.add_row(*cells)
    return table


def _sum(seconds: float) -> str:
    return f"{_tenths(seconds)} s" if seconds < 10 else duration(seconds)


def _tenths(value: float) -> str:
    """With one decimal where the whole number would be a single digit."""
    return f"{value:.1f}" if round(value, 1) < 10 else f"{value:.0f}"


def plan_page(plan: Plan, currency: str) -> RenderableType:
    """A plan, to read before deciding."""
    table = Table("stage", "calls", "a call", "actors", "at work", "idle", "pool costs", title_justify="left")
    for pool in plan.pools:
        table.add_row(
            pool.stage,
            f"{pool.calls:,}",
            "–" if pool.seconds is None else f"{pool.seconds:.3g} s",
            str(pool.size),
            "–" if pool.seconds is None else duration(pool.work_seconds),
            percent(pool.idle_share),
            money(pool.money, currency),
        )
    return Group(*[Text(line) for line in _plan_head(plan)], table, *[Text(line) for line in _plan_end(plan, currency)])


def _plan_head(plan: Plan) -> Iterator[str]:
    yield (
        f"{plan.prompts:,} prompts, {plan.candidates:,} candidates, {plan.clips:,} clips"
        + (f", {plan.audited:,} refined for the audit" if plan.audited else "")
        + f": about {duration(plan.wall_seconds)}, of which {plan.slowest} decides"
    )
    yield f"Seconds a call: {plan.seconds_source}. Survivors: {percent(plan.keep_rate)}, {plan.keep_source}."


def _plan_end(plan: Plan, currency: str) -> Iterator[str]:
    cost = f"Work: {_cost(plan.cost, currency)}"
    if plan.per_clip is not None:
        cost += f"; a clip {_cost(plan.per_clip, currency)}"
    yield cost
    if plan.held_money is not None:
        yield f"With the pools' idle time: {money(plan.held_money, currency)}"
    saving = plan.refine_everything
    if saving is not None and saving.spared:
        everything = plan.cost + saving.cost
        yield (
            f"Refining everything and filtering last would take {_cost(everything, currency)}: "
            f"selection saves {percent(saving.share)}"
        )
    if plan.operations is not None:
        one = plan.operations
        ratio = one.single / (one.preview + one.refine)
        whose = "the released networks" if one.released else "these networks"
        yield f"A clip in a single stage would take {ratio:.3g} times the operations of two ({whose}, calculated)"
    preview, refine = plan.balance
    sizes = {pool.stage: pool.size for pool in plan.pools}
    yield (
        f"Balanced: {preview:.3g} : {refine:.3g} {'cards' if plan.cost.gpu_seconds else 'cores'} of preview : refine; "
        f"with pools.preview.size={sizes['preview']}, pools.refine.size={plan.balanced_size} (now {sizes['refine']})"
    )
    if (split := plan.split) is not None:
        best = f"pools.preview.size={split.preview}, pools.refine.size={split.refine}"
        now = "" if (split.preview, split.refine) == (sizes["preview"], sizes["refine"]) else (
            f" (now {sizes['preview']} and {sizes['refine']}, {duration(plan.wall_seconds)})"
        )  # fmt: skip
        unit = "cards" if plan.cost.gpu_seconds else "cores"
        yield f"Best fixed split of {split.cards:g} {unit}: {best}, {duration(split.seconds)}{now}"
    for fit in plan.fits:
        if fit.fits:
            yield f"Memory: {fit.stage} needs about {fit.needed_gib:.1f} of {fit.card_gib:g} GiB ({fit.source})"
        elif fit.remedy is None:
            yield (
                f"DOES NOT FIT: {fit.stage} needs about {fit.needed_gib:.1f} GiB of {fit.card_gib:g} ({fit.source}), "
                "whatever is set"
            )
        else:
            changes = " ".join(f"--set '{key}={_plain(value)}'" for key, value in fit.remedy.items())
            yield (
                f"DOES NOT FIT: {fit.stage} needs about {fit.needed_gib:.1f} GiB of {fit.card_gib:g} ({fit.source}); "
                f"about {fit.remedy_gib:.1f} with {changes}"
            )
    yield from _text_places(plan, currency)
    yield from plan.notes


def _text_places(plan: Plan, currency: str) -> Iterator[str]:
    if not plan.text_places:
        return
    yield f"Text encoder, {plan.prompts:,} prompts, held as long as the run takes:"
    own = plan.text_places[0].money
    for place in plan.text_places:
        cost = "" if place.money is None else f", {money(place.money, currency)}"
        if own is not None and place.money is not None and place is not plan.text_places[0]:
            cost += f", saves {money(own - place.money, currency)}"
        said = f"{place.seconds:.3g} s a prompt, {place.source}"
        yield f"  {place.where}: {duration(3600 * place.hours)}{cost} ({said})"


def audit_page(audit: Audit) -> RenderableType:
    """An audit's two tables."""
    scores = Table("score", "both ends", "rank correlation", "95 %", "rendered above rejected", title_justify="left")
    for one in audit.scores:
        if one.correlation is None:
            continue
        interval = "–" if one.low is None else f"{one.low:.2f} … {one.high:.2f}"
        name = f"{one.name} (held out)" if one.held_out else one.name
        scores.add_row(name, str(one.count), _two(one.correlation), interval, _two(one.separation))
    rules = Table("rule", "rejected, and the clip meets it", "rendered, and the clip does not", title_justify="left")
    for rule in audit.rules:
        rules.add_row(rule.rule, _share(rule.false_rejects), _share(rule.false_accepts))
    head = f"{audit.rendered:,} rendered, {audit.audited:,} of {audit.rejected:,} rejected candidates with a clip"
    parts: list[RenderableType] = [Text(head), scores, *([rules] if audit.rules else [])]
    constant = ", ".join(one.name for one in audit.scores if one.correlation is None)
    if constant:
        parts.append(Text(f"Without a correlation, because one end is missing or the same everywhere: {constant}"))
    return Group(*parts, *[Text(note) for note in audit.notes])


def inspection_lines(found: Inspection) -> Iterator[str]:
    """What a file says of itself, what is to be known of it, and the command that makes it again."""
    held = found.video
    yield _printable(found.file)
    size = f"{held['width']}x{held['height']}"
    yield f"  video         {held['codec']}, {size}, {held['frames']} frames at {held['fps']:g} a second"
    yield f"  sha256        {held['sha256']}"
    yield f"  stream_sha256 {held['stream_sha256']}"
    yield f"  mark          {_printable(found.mark or 'none: it does not say that a model has made it')}"
    for name, value in found.made.items():
        plain = isinstance(value, str) and value.isprintable()
        # A file may come from anybody, and its keys must not pass for what is known of it.
        taken = name in _OWN_LINES or not re.fullmatch(r"\w+", name, re.ASCII)
        yield f"  {json.dumps(name) if taken else name:<13} {value if plain else json.dumps(value)}"
    if found.signature is not None:
        own = found.signature
        yield f"  signed by     {_printable(own.signer)}"
        yield f"  signed at     {_printable(own.timestamp or f'{own.created} by its own account')}"
    yield from map(_printable, found.notes)
    if found.command is not None:
        yield f"The same again:\n{_printable(found.command)}"


def _printable(text: str) -> str:
    """The text with all that cannot be printed, line breaks among it, as escapes."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def finding_lines(findings: Sequence[tuple[str, str, str, str, str]]) -> Iterator[str]:
    """What `doctor` found: level, where, about what, message, and what mends it on a line of its own."""
    width = max((len(level) for level, *_ in findings), default=0)
    for level, where, about, message, mend in findings:
        yield f"{level:<{width}}  {where}: {about}: {message}"
        if mend:
            yield f"{'':<{width}}  → {mend}"


def print_lines(console: Console, lines: Iterator[str]) -> None:
    """Lines as they are: no markup, no breaks."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _share(share: Share) -> str:
    if share.value is None or share.low is None or share.high is None:
        return "–"
    return f"{share.hits} of {share.of}: {percent(share.value)} ({100 * share.low:.0f} … {100 * share.high:.0f} %)"


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _work(cost: Mapping[str, Any]) -> str:
    parts = [(cost["gpu_seconds"], "GPU-seconds"), (cost["cpu_seconds"], "core-seconds")]
    said = [
        f"{seconds:,.0f} {unit}" if seconds >= 10 else f"{seconds:.2g} {unit}" for seconds, unit in parts if seconds
    ]
    return " and ".join(said) or "nothing"


def _cost(cost: Cost, currency: str) -> str:
    work = _work({"gpu_seconds": cost.gpu_seconds, "cpu_seconds": cost.cpu_seconds})
    return work if cost.money is None else f"{work}, {money(cost.money, currency)}"


def _plain(value: Any) -> str:
    return str(value).replace(" ", "")
