"""What a run cost and produced: figures for summary.json, and one HTML page for people.

Both are made from the ledger's two tables alone, so they can be made again at any time. The page is one file without
scripts: it can be mailed, printed, or opened from the run directory, where its links lead to the clips.
"""

from __future__ import annotations

import base64
import datetime as dt
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
import pyarrow as pa
import yaml
from PIL import Image

from flashvideo_ray import engines
from flashvideo_ray.accounting import terminal
from flashvideo_ray.accounting.summary import Row, joined, score_names, usable
from flashvideo_ray.prompts import visible
from flashvideo_ray.scorers import columns

_CARDS = 120  # a section
_PROMPTS = 40  # side by side
_THUMBNAIL_BYTES = 2_500_000  # in the whole page; further pictures are links into the run directory
_THUMBNAIL_SIDE = 400  # pixels
_MESSAGES = 5  # different ones for each class of failures


def write_report(
    previews: pa.Table,
    clips: pa.Table,
    run: Mapping[str, Any],
    summary: Mapping[str, Any],
    *,
    poster: Callable[[str], bytes | None],
    audit: Mapping[str, Any] | None = None,
    title: str = "FlashVideo run",
) -> str:
    """The run as one self-contained HTML page.

    Of thousands of candidates the first ones of each kind are shown, and the page says so. Small pictures are stored in
    the page as long as they fit, further ones are links to the poster files.

    Args:
        previews: the ledger's previews.
        clips: the ledger's clips.
        run: run.json; `created` stands in the head of the page, everything in a fold at its end.
        summary: of `summarise`, with `wall_seconds`, the `bill` and the `forecast` if they are known.
        poster: gives a poster file's bytes for its path relative to the run, or None if it is not to be had.
        audit: audit.json, if an audit was made.
        title: the page's title, such as the name of the run.
    """
    scores = score_names(previews)
    rows = [_visible(row) for row in joined(previews, clips)]
    contests = _contests(rows)
    compared = {row["clip_id"] for contest in contests for row in contest["rows"]}
    by_status: dict[str, list[Row]] = {}
    for row in rows:
        by_status.setdefault("waiting" if row["status"] in ("previewed", "approved") else row["status"], []).append(row)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flashvideo_ray"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": _count, "duration": _duration, "size": _size, "number": _number, "percent": _percent, "url": _url,
        "money": _money, "work": _work,
    }  # fmt: skip
    return environment.get_template("report.html").render(
        title=title,
        run=run,
        summary=summary,
        forecast=_forecast(summary),
        funnel=_funnel(summary),
        groups=by_status,
        alone={status: [row for row in group if row["clip_id"] not in compared] for status, group in by_status.items()},
        contests=contests,
        audit=audit,
        **_unknown_words(rows, run),
        scores=scores,
        failures=_failures(by_status.get("failed", [])),
        histograms=[_histogram(columns.column(name), by_status) for name in scores],
        recipe=visible(yaml.safe_dump(_plain(run), sort_keys=False, allow_unicode=True, width=100)) if run else "",
        thumbnail=_Thumbnails(poster),
        limit=_CARDS,
        strips=_PROMPTS,
    )


def _forecast(summary: Mapping[str, Any]) -> str | None:
    """When the run ends, if something is left of it."""
    told = summary.get("forecast")
    if told is None or told["seconds_left"] == 0:
        return None
    return terminal.forecast_line(told, dt.datetime.now(dt.UTC))


def _visible(row: Row) -> Row:
    """The row, whose text can be seen for what it is. A prompt may hold anything, and errors quote it."""
    return {name: visible(value) if isinstance(value, str) else value for name, value in row.items()}


class _Thumbnails:
    """Gives a picture's address: in the page while there is room, then its file."""

    def __init__(self, poster: Callable[[str], bytes | None]) -> None:
        self.poster = poster
        self.room = _THUMBNAIL_BYTES

    def __call__(self, path: str | None) -> str | None:
        if not path:
            return None
        data = self.poster(path) if self.room > 0 else None
        if not data:
            return _url(path) if self.room <= 0 else None
        try:
            picture = Image.open(io.BytesIO(data)).convert("RGB")
        except OSError:
            return None
        picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        picture.save(out, "WEBP", quality=78)
        address = "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
        self.room -= len(address)
        return address


def _contests(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Prompts with several candidates, each with them side by side, the best by rank first."""
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(row["id"], []).append(row)
    contests = []
    for group in by_prompt.values():
        if len(group) > 1:
            ordered = sorted(group, key=lambda row: -row["rank"] if usable(row.get("rank")) else math.inf)
            contests.append({"prompt": group[0]["prompt"], "id": group[0]["id"], "rows": ordered})
    return contests


def _unknown_words(rows: Iterable[Row], run: Mapping[str, Any]) -> dict[str, Any]:
    """Words of the prompts that the model does not know, the most frequent first, and a prompt that it can follow."""
    model = run.get("settings", {}).get("preview", {}).get("model", "")
    known = engines.vocabulary_of(model)
    if known is None:
        return {"unknown": [], "model": model, "example": ""}
    prompts = {row["id"]: row["prompt"] for row in rows}
    words = Counter(word for prompt in prompts.values() for word in known.unknown_words(prompt))
    return {"unknown": [word for word, _ in words.most_common()], "model": model, "example": known.examples[0]}


def _funnel(summary: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Steps with their counts and what they mean; without previews of its own a run has no first half."""
    rendered = summary["status"].get("rendered", 0)
    steps = [("Candidates", summary["candidates"], f"of {_count(summary['prompts'])} prompts")]
    if summary["previews"]:
        steps.append(("Previewed", summary["previews"], "stage 1 finished"))
        steps.append(("Survivors", summary["survivors"], "not rejected by selection"))
    return [*steps, ("Rendered", rendered, "stage 2 published")]


def _failures(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Failed candidates by stage and class, the most frequent first, each with a few different messages."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["stage"] or "unknown", row["error_class"] or "unknown"), []).append(row)
    return [
        {
            "stage": stage,
            "error_class": error_class,
            "count": len(group),
            "examples": list({row["error"]: row for row in reversed(group)}.values())[::-1][:_MESSAGES],
        }
        for (stage, error_class), group in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]


def _histogram(column: str, by_status: Mapping[str, Iterable[Row]], bins: int = 32) -> dict[str, Any]:
    """How one score is spread over the kept and the rejected candidates; bar heights are shares of the tallest."""
    out = np.array([row[column] for row in by_status.get("rejected", []) if usable(row[column])])
    others = (row[column] for status, rows in by_status.items() if status != "rejected" for row in rows)
    kept = np.array([value for value in others if usable(value)])
    values = np.concatenate([kept, out])
    if not len(values):
        return {"name": columns.name_of(column), "count": 0}
    edges = np.histogram_bin_edges(values, bins)
    heights = np.stack([np.histogram(kept, edges)[0], np.histogram(out, edges)[0]], axis=1)
    return {
        "name": columns.name_of(column),
        "count": len(values),
        "low": float(values.min()),
        "median": float(np.median(values)),
        "high": float(values.max()),
        "bars": (heights / heights.sum(axis=1).max()).round(3).tolist(),
    }


def _plain(value: Any) -> Any:
    """Values as YAML's safe dumper takes them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _url(path: str) -> str:
    return quote(path, safe="/")  # a colon too, so that a path never is another scheme


def _count(value: int) -> str:
    return f"{value:,}".replace(",", "\u202f")


def _number(value: Any) -> str:
    """Three significant digits; a dash for what is missing."""
    if not usable(value):
        return "–"
    if 0 < abs(value) < 0.001:
        return "≈\u202f0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _work(cost: Mapping[str, Any]) -> str:
    """Cards and cores apart."""
    parts = [(cost["gpu_seconds"], "GPU-seconds"), (cost["cpu_seconds"], "core-seconds")]
    said = [f"{_count(round(value)) if value >= 10 else f'{value:.2g}'}\u00a0{unit}" for value, unit in parts if value]
    return " + ".join(said) or "–"


def _money(value: Any, currency: str) -> str:
    return terminal.money(value, currency).replace(",", "\u202f").replace(" ", "\u00a0")


def _percent(value: Any) -> str:
    return f"{100 * value:.3g}\u202f%" if usable(value) else "–"


def _duration(seconds: Any) -> str:
    """Two units at most: 4 ms, 0.82 s, 41 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if not usable(seconds):
        return "–"
    if 0 < seconds < 0.01:
        return f"{1000 * seconds:.2g}\u00a0ms"
    if seconds < 59.5:
        return f"{seconds:.2g}\u00a0s" if seconds < 10 else f"{seconds:.0f}\u00a0s"
    for size, unit, smaller, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        rounded = round(seconds / smaller) * smaller
        if rounded >= size:
            whole, rest = divmod(rounded, size)
            return f"{whole:.0f}\u00a0{unit}" + (f" {rest / smaller:.0f}\u00a0{small_unit}" if rest else "")
    raise AssertionError("unreachable: a minute has 60 seconds")


def _size(value: Any) -> str:
    if not usable(value):
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g}\u00a0{unit}"
        value /= 1000
    return f"{value:.3g}\u00a0TB"
