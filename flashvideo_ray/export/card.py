"""The dataset card, README.md in DEST, by whose head `datasets` finds the splits; and columns.json, the dictionary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import yaml

from flashvideo_ray.accounting.terminal import bill_lines
from flashvideo_ray.export import dictionary, formats
from flashvideo_ray.export.options import SUFFIX, Options
from flashvideo_ray.export.samples import Found
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import Settings

_READERS = {"webdataset": "webdataset", "jsonl": "json"}  # as the Hub calls formats; parquet otherwise
# The Hub's names of licenses that are for data; it takes no other text, but `other` with a name.
_LICENSES = frozenset(
    {
        *("apache-2.0", "mit", "openrail", "odc-by", "odbl", "pddl", "cc0-1.0", "unknown", "unlicense"),
        *("cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0"),
        *("cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0"),
        *("cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    }
)
_MODEL_KEYS = ("preview", "refine")
_FUNNEL = ("rendered", "rejected", "failed", "skipped", "previewed", "approved")


@dataclass(frozen=True)
class Facts:
    """What the card is made of. `summary` is that of the run, `live` are rows of the index that are not withdrawn."""

    run: Mapping[str, Any]
    source: str
    settings: Settings
    summary: Mapping[str, Any]
    options: Options
    schema: pa.Schema
    found: Found
    index: pa.Table
    live: pa.Table
    withdrawn: pa.Table
    new_columns: tuple[str, ...]


def write(target: Store, facts: Facts) -> None:
    """Write the card and the dictionary of the columns."""
    embedded = tuple(medium.column for medium in facts.found.media) if facts.options.embeds else ()
    columns = dictionary.describe(facts.schema, embedded, facts.options)
    target.put("columns.json", json.dumps([column.as_dict() for column in columns], indent=2).encode())
    target.put("README.md", ("\n".join(_page(facts, columns)) + "\n").encode())


def _page(facts: Facts, columns: Iterable[dictionary.Column]) -> Iterator[str]:
    options, summary = facts.options, facts.summary
    yield from ["---", yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True).rstrip(), "---", ""]
    what = "Pairs of videos, one preferred," if options.format == "preference" else "Videos"
    yield from [f"# {_title(facts.source)}", "", f"{what} made by machines from text, with FlashVideo in two stages: "]
    yield from ["flashvideo_ray exported them from a run, whose ledger says how each was made.", ""]
    yield f"License: {options.license or 'not stated by whoever exported it'}."
    yield from ["", "## What is here", ""]
    yield from _table(["split", "rows", "shards"], _splits(facts))
    sizes = {row["shard"]: row["shard_bytes"] for row in facts.index.to_pylist()}
    yield from ["", f"{sum(sizes.values()) / 1e6:,.1f} MB of shards, format `{options.format}`, of {options.media_of}."]
    yield f"Caption: the column `{options.caption}`. Filter: {_code(options.where)}."
    yield (
        "`index/` has the SHA-256 of each shard and of each video. `withdrawn.parquet` names rows that belong in the "
        f"dataset no more, {facts.withdrawn.num_rows:,} now: leave them out when reading."
    )
    if facts.withdrawn.num_rows:
        yield from ["", *_table(["withdrawn because", "rows"], _counted(facts.withdrawn["why"].to_pylist()))]
    yield from ["", "## How it was made", ""]
    yield from _table(["stage", "model", "fingerprint of the weights"], _models(facts))
    yield from ["", "Settings that decide the pixels:", "", "```yaml"]
    recipe = {stage: facts.run["recipe"][stage] for stage in _MODEL_KEYS if stage in facts.run["recipe"]}
    yield from [yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).rstrip(), "```", ""]
    yield from ["Rules that chose the candidates, which people's decisions go before:", "", "```yaml"]
    yield from [yaml.safe_dump(facts.settings.select.model_dump(mode="json"), sort_keys=False).rstrip(), "```", ""]
    yield f"{facts.settings.candidates} candidates a prompt; scorers: {_scorers(facts)}."
    versions = ", ".join(f"{name} {number}" for name, number in facts.run.get("versions", {}).items())
    yield from [f"Software: {versions}." if versions else "", "", "## From prompts to rows", ""]
    yield from _table(["", "count"], _funnel(facts))
    if summary["rejections"]:
        yield from ["", *_table(["rejected because", "candidates"], summary["rejections"].items())]
    if summary["failures"]:
        failures = [(f"{at}: {name}", n) for at, kinds in summary["failures"].items() for name, n in kinds.items()]
        yield from ["", *_table(["failed at", "candidates"], failures)]
    yield from ["", "## What it cost", "", *(f"- {line}" for line in bill_lines(summary["bill"]))]
    yield from ["", "## Known gaps", "", *(f"- {line}" for line in _gaps(facts))]
    yield from ["", "## Columns", ""]
    rows = ((f"`{each.name}`", each.type, each.unit, each.meaning) for each in columns)
    yield from _table(["column", "type", "unit", "meaning"], rows)


def _front_matter(facts: Facts) -> dict[str, Any]:
    """What the Hub and `load_dataset` read: the license, and where each split is."""
    suffix = SUFFIX[facts.options.format]
    there = set(facts.index["split"].to_pylist())
    files = [{"split": name, "path": f"data/{name}-*.{suffix}"} for name in facts.options.splits if name in there]
    # The types of tar shards stand here: `datasets` would take them from a few rows.
    is_tar = facts.options.format == "webdataset"
    types = {"dataset_info": {"features": formats.tar_features(facts.schema)}} if is_tar else {}
    return {
        **_license(facts.options.license),
        **types,
        "task_categories": ["text-to-video"],
        "tags": ["synthetic", "video", "flashvideo_ray"],
        "configs": [{"config_name": "default", "data_files": files}],
    }


def _license(stated: str | None) -> dict[str, str]:
    """As the Hub has it."""
    if stated is None:
        return {}
    name = stated.lower()
    return {"license": name} if name in _LICENSES else {"license": "other", "license_name": stated}


def _splits(facts: Facts) -> Iterator[tuple[str, str, int]]:
    rows = Counter(facts.live["split"].to_pylist())
    shards = Counter(shard.rpartition("/")[2].rpartition("-")[0] for shard in set(facts.index["shard"].to_pylist()))
    for name in facts.options.splits:
        yield name, f"{rows[name]:,}", shards[name]


def _models(facts: Facts) -> Iterator[tuple[str, str, str]]:
    for stage in _MODEL_KEYS:
        model = getattr(facts.settings, stage).model
        yield stage, f"`{model}`", f"`{facts.run['recipe'].get('fingerprints', {}).get(stage, 'not known')}`"


def _funnel(facts: Facts) -> Iterator[tuple[str, str]]:
    summary = facts.summary
    yield "prompts", f"{summary['prompts']:,}"
    yield "candidates", f"{summary['candidates']:,}"
    yield "previews", f"{summary['previews']:,}"
    yield "survivors of selection", f"{summary['survivors']:,}"
    for name in _FUNNEL:
        if name in summary["status"]:
            yield name, f"{summary['status'][name]:,}"
    yield "rows of this dataset", f"{facts.live.num_rows:,}"


def _gaps(facts: Facts) -> Iterator[str]:
    for reason, count in facts.found.gaps.items():
        yield f"{count:,} candidates are left out: {reason}."
    if facts.new_columns:
        yield f"The run has columns that it had not when the dataset was begun: {', '.join(facts.new_columns)}."
    open_ = sum(facts.summary["status"].get(name, 0) for name in ("previewed", "approved", "skipped"))
    if open_:
        yield f"{open_:,} candidates of the run have no clip yet; the same export adds them when they have one."
    if facts.summary.get("earlier_texts"):
        yield f"{facts.summary['earlier_texts']:,} candidates of earlier texts of prompts are not in it."
    yield "A row stays as it was when it was written: decisions and scores that came later are in the run's ledger."
    yield "Scores are of previews, not of clips, and are those of automatic scorers."


def _scorers(facts: Facts) -> str:
    return ", ".join(f"`{spec.name}`" for spec in facts.settings.score.scorers) or "none"


def _counted(reasons: Iterable[str]) -> list[tuple[str, int]]:
    return Counter(reasons).most_common()


def _table(head: list[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in row)} |"


def _code(text: str | None) -> str:
    return "none" if text is None else f"`{text}`"


def _title(source: str) -> str:
    return source.rstrip("/").rpartition("/")[2]
