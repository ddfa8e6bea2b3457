"""What a run cost and produced: figures for summary.json, and one HTML page for people.

Both are made from the ledger's two tables alone, so they can be made again at any time. The page is one file without
scripts: it can be mailed, printed, or opened from the run directory, where its links lead to the clips.
"""

from __future__ import annotations

import base64
import datetime as dt
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from PIL import Image

from flashvideo_ray import engines
from flashvideo_ray.accounting import terminal
from flashvideo_ray.accounting.sample import CARDS, PROMPTS, READ, Sample, Whole
from flashvideo_ray.accounting.summary import Row, finite, score_names, usable
from flashvideo_ray.prompts import visible
from flashvideo_ray.scorers import columns

_THUMBNAIL_BYTES = 2_500_000  # in the whole page; further pictures are links into the run directory
_THUMBNAIL_SIDE = 400  # pixels


def write_report(
    previews: pa.Table,
    clips: pa.Table,
    run: Mapping[str, Any],
    summary: Mapping[str, Any],
    *,
    poster: Callable[[str], bytes | None],
    audit: Mapping[str, Any] | None = None,
    title: str = "FlashVideo run",
    whole: Whole | None = None,
) -> str:
    """The run as one self-contained HTML page.

    Of thousands of candidates the first ones of each kind are shown, and the page says so. Small pictures are stored in
    the page as long as they fit, further ones are links to the poster files.

    Args:
        previews: the ledger's previews, all columns or those of `Standing`'s figures.
        clips: the ledger's clips, likewise.
        whole: gives all columns of both for these clip_ids; None: they have them.
        run: run.json; `created` stands in the head of the page, everything in a fold at its end.
        summary: of `summarise`, with `wall_seconds`, the `bill` and the `forecast` if they are known.
        poster: gives a poster file's bytes for its path relative to the run, or None if it is not to be had.
        audit: audit.json, if an audit was made.
        title: the page's title, such as the name of the run.
    """
    scores = score_names(previews)
    sample = Sample.of(previews, clips, scores, whole)
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
        groups=sample.groups,
        alone=sample.alone,
        contests=sample.contests,
        audit=audit,
        **_unknown_words(sample.first, run),
        read=READ if sample.table.num_rows > READ else 0,
        scores=scores,
        failures=sample.failures,
        histograms=[_histogram(sample.table, columns.column(name)) for name in scores],
        recipe=visible(yaml.safe_dump(_plain(run), sort_keys=False, allow_unicode=True, width=100)) if run else "",
        thumbnail=_Thumbnails(poster),
        limit=CARDS,
        strips=PROMPTS,
    )


def _forecast(summary: Mapping[str, Any]) -> str | None:
    """When the run ends, if something is left of it."""
    told = summary.get("forecast")
    if told is None or told["seconds_left"] == 0:
        return None
    return terminal.forecast_line(told, dt.datetime.now(dt.UTC))


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


def _histogram(table: pa.Table, column: str, bins: int = 32) -> dict[str, Any]:
    """How one score is spread over the kept and the rejected candidates; bar heights are shares of the tallest."""
    is_out = pc.equal(table["status"], "rejected")
    out, kept = finite(table[column].filter(is_out)), finite(table[column].filter(pc.invert(is_out)))
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
