"""Selection: scores of previews in, decisions with their reasons out. Pure functions over tables; no Ray, no tensors.

The same function judges the candidates of one prompt while a run is going on, and a ledger of a hundred thousand
previews when somebody wants to know what other rules would do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from flashvideo_ray.expressions.rules import Column, Rank, Requirement, RuleError, check_names
from flashvideo_ray.scorers import columns
from flashvideo_ray.settings import SelectSettings

__all__ = ["Opinion", "RuleError", "audited", "check_rules", "reasons_without_numbers", "select"]

HASH_BITS = 48


@dataclass(frozen=True)
class Opinion:
    """What a person decided about a preview. It goes before any rule."""

    approved: bool
    by: str


def select(previews: pa.Table, settings: SelectSettings, people: Mapping[str, Opinion] | None = None) -> pa.Table:
    """Decide on previews.

    Args:
        previews: `clip_id`, `id` (of the prompt), `candidate`, `score_<name>` columns and, if there are any,
            `scorer_errors`. Candidates of a prompt are compared with one another, so all of them must be in it; for
            percentiles and for duplicates within the run, all previews of the run.
        settings: the rules.
        people: decisions by people, by clip_id.

    Returns:
        In the order of the rows: `status` (`previewed`: survives, `approved`: survives by a person's word, `rejected`,
        or `failed` where a score is missing and `settings.missing` says so), `reason` (null for survivors) and `rank`
        (null where no rank is asked for or it cannot be computed).
    """
    rules = _Rules(previews, settings)
    rules.require()
    rules.percentiles()
    rules.rank()
    rules.duplicates()
    rules.keep()
    rules.ask(people or {})
    return rules.result()


def check_rules(settings: SelectSettings, known: list[str]) -> None:
    """Raise RuleError if a rule uses a score that none of the `known` is."""
    rules = [Requirement.parse(text) for text in settings.require]
    ranks = [Rank.parse(name) for name in [*settings.percentiles, *filter(None, [settings.rank])]]
    check_names([*rules, *ranks], known)
    if settings.duplicates is not None and "hash" not in known:
        raise RuleError("select.duplicates compares the score `hash`; add the scorer phash to score.scorers")


def audited(clip_id: str, share: float) -> bool:
    """Whether a rejected preview belongs to the share that is refined all the same; always the same answer for it."""
    return int(hashlib.sha256(f"audit/{clip_id}".encode()).hexdigest()[:12], 16) < share * 16**12


def reasons_without_numbers(reason: str) -> str:
    """The rule of a reason, without what was seen: to count by."""
    return reason.rpartition(" (")[0] if reason.endswith(")") and " (" in reason else reason


class _Rules:
    """One pass of all rules over one table: who is still in, and why the others are not."""

    def __init__(self, previews: pa.Table, settings: SelectSettings):
        self.settings = settings
        self.count = previews.num_rows
        self.clip_ids: list[str] = previews["clip_id"].to_pylist()
        encoded = previews["id"].combine_chunks().dictionary_encode()
        self.prompts: NDArray[np.int64] = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        self.candidates = previews["candidate"].to_numpy().astype(np.int64)
        self.scores = {
            columns.name_of(name): previews[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
            for name in previews.column_names
            if columns.is_score(name)
        }
        self.errors: list[str | None] = (
            previews["scorer_errors"].to_pylist() if "scorer_errors" in previews.column_names else [None] * self.count
        )
        self.alive = np.ones(self.count, bool)
        self.ranks: Column = np.full(self.count, np.nan)
        self.status = ["previewed"] * self.count
        self.reason: list[str | None] = [None] * self.count

    def require(self) -> None:
        """Drop what does not meet a requirement; the first one is the reason, with the numbers it saw.

        Scores that are missing come after all numbers: where a cheap score rejects, a costly one was never computed.
        """
        rules = [Requirement.parse(text) for text in self.settings.require]
        for rule in rules:
            known = self._known(rule.names)
            holds = np.broadcast_to(rule.over(self._columns(rule.names)), (self.count,))
            for row in np.flatnonzero(self.alive & known & ~holds):
                seen = self._seen(rule.names, row)
                self._reject(row, f"{rule.text} ({seen})" if seen else rule.text)
        for rule in rules:
            self._miss(rule.names, rule.text)

    def percentiles(self) -> None:
        """Drop what is below a percentile of all previews that have the score."""
        for name, percent in self.settings.percentiles.items():
            values = self._columns([name])[name]
            known = self._known([name])
            self._miss([name], f"{name} at the {percent:g}th percentile")
            if not np.isfinite(values).any():
                continue
            limit = float(np.percentile(values[np.isfinite(values)], percent))
            for row in np.flatnonzero(self.alive & known & (values < limit)):
                numbers = f"{values[row]:.4g} < {limit:.4g}"
                self._reject(row, f"{name} below the run's {percent:g}th percentile ({numbers})")

    def rank(self) -> None:
        """Compute the rank of all; who has none is treated as one without a score."""
        if self.settings.rank is None:
            return
        rank = Rank.parse(self.settings.rank)
        self._miss(rank.names, f"rank {rank.text}")
        values = np.broadcast_to(rank.over(self._columns(rank.names)), (self.count,)).astype(np.float64)
        self.ranks = np.where(np.isfinite(values), values, np.nan)
        if self.settings.missing != "keep":
            for row in np.flatnonzero(self.alive & np.isnan(self.ranks)):
                why = f"rank {rank.text} is no number ({self._seen(rank.names, row)})"
                self._reject(row, why, failed=self.settings.missing == "fail")

    def duplicates(self) -> None:
        """Of previews that look alike keep the best."""
        bits = self.settings.duplicates
        if bits is None:
            return
        values = self._columns(["hash"])["hash"]
        hashes = [int(value) if np.isfinite(value) else None for value in values]
        groups = self.prompts if self.settings.duplicates_within == "prompt" else np.zeros_like(self.prompts)
        seen: dict[tuple[int, int, int], list[int]] = {}
        for row in self._best_first():
            found = hashes[row]
            if found is None:
                continue
            places = [(int(groups[row]), band, part) for band, part in _bands(found, bits)]
            alike = (other for place in places for other in seen.get(place, ()))
            near = next((other for other in alike if _differ(found, hashes[other]) <= bits), None)
            if near is None:
                for place in places:
                    seen.setdefault(place, []).append(row)
            else:
                numbers = f"{self.clip_ids[near]}, {_differ(found, hashes[near])} of {HASH_BITS} bits differ"
                self._reject(row, f"near-duplicate of a better one ({numbers})")

    def keep(self) -> None:
        """Keep the best `keep` candidates of each prompt."""
        if self.settings.keep is None:
            return
        by = f"by {self.settings.rank}" if self.settings.rank is not None else "in order"
        places: dict[int, int] = {}
        of = np.bincount(self.prompts[self.alive], minlength=1)
        for row in self._best_first():
            prompt = int(self.prompts[row])
            places[prompt] = places.get(prompt, 0) + 1
            if places[prompt] > self.settings.keep:
                place = f"{self.ranks[row]:.4g}, " if np.isfinite(self.ranks[row]) else ""
                place += f"place {places[prompt]} of {of[prompt]}"
                self._reject(row, f"not among the best {self.settings.keep} of its prompt {by} ({place})")

    def ask(self, people: Mapping[str, Opinion]) -> None:
        """What people decided goes before all rules."""
        if not people:
            return
        for row, clip_id in enumerate(self.clip_ids):
            opinion = people.get(clip_id)
            if opinion is not None:
                self.status[row] = "approved" if opinion.approved else "rejected"
                self.reason[row] = None if opinion.approved else f"rejected by {opinion.by}"

    def result(self) -> pa.Table:
        """Status, reason and rank of each row."""
        ranks = pa.array(self.ranks, pa.float64(), mask=np.isnan(self.ranks))
        return pa.table(
            {"status": pa.array(self.status, pa.string()), "reason": pa.array(self.reason, pa.string()), "rank": ranks}
        )

    def _columns(self, names: Iterable[str]) -> dict[str, Column]:
        """Score columns; one that no preview has is all missing."""
        for name in names:
            self.scores.setdefault(name, np.full(self.count, np.nan))
        return {name: self.scores[name] for name in names}

    def _known(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """Rows that have all these scores."""
        known = np.ones(self.count, bool)
        for values in self._columns(names).values():
            known &= np.isfinite(values)
        return known

    def _seen(self, names: Iterable[str], row: int | np.int64) -> str:
        return ", ".join(f"{name} = {self.scores[name][row]:.4g}" for name in sorted(names))

    def _miss(self, names: Iterable[str], rule: str) -> None:
        """Rows without one of these scores are rejected, failed or let pass, as the settings say."""
        if self.settings.missing == "keep":
            return
        values = self._columns(names)
        for row in np.flatnonzero(self.alive & ~self._known(names)):
            missing = ", ".join(name for name in sorted(values) if not np.isfinite(values[name][row]))
            why = f" ({self.errors[row]})" if self.errors[row] else ""
            self._reject(row, f"{rule}: no usable score {missing}{why}", failed=self.settings.missing == "fail")

    def _best_first(self) -> Iterator[int]:
        """Rows that are still in, by rank; those without one last; equals in the order of candidates."""
        ranks = np.where(np.isnan(self.ranks), -np.inf, self.ranks)
        order = np.lexsort((self.candidates, -ranks))
        return iter(order[self.alive[order]].tolist())

    def _reject(self, row: int | np.int64, reason: str, failed: bool = False) -> None:
        self.alive[row] = False
        self.status[row] = "failed" if failed else "rejected"
        self.reason[row] = reason


def _bands(value: int, bits: int) -> Iterator[tuple[int, int]]:
    """The hash cut into bits + 1 pieces: hashes that differ in at most `bits` bits have one of them in common."""
    edges = [HASH_BITS * band // (bits + 1) for band in range(bits + 2)]
    for band in range(bits + 1):
        yield band, (value >> edges[band]) & ((1 << (edges[band + 1] - edges[band])) - 1)


def _differ(a: int, b: int | None) -> int:
    return HASH_BITS if b is None else (a ^ b).bit_count()
