"""What waits, in which order, and what may still be added to it. Pure functions over a snapshot of the run."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flashvideo_ray import identity, prompts
from flashvideo_ray.serve.snapshot import Candidate, Snapshot
from flashvideo_ray.settings import SelectSettings, Settings

_SEEDS = 2**63


@dataclass(frozen=True)
class Submission:
    """What one call asks for: candidates of prompts, clips of candidates, or one more candidate like another.

    `prompts` are mappings with `prompt` and perhaps `id`, `negative_prompt` and `seed`; `refine` are clip_ids.
    """

    by: str
    prompts: tuple[Mapping[str, Any], ...] = ()
    candidates: int = 1
    wish: Literal["preview", "refine"] = "preview"
    refine: tuple[str, ...] = ()
    reseed: str | None = None
    key: str | None = None

    @property
    def body(self) -> str:
        """A digest of what is asked for, to tell whether a repeated key comes with the same."""
        asked = repr((self.prompts, self.candidates, self.wish, self.refine, self.reseed))
        return hashlib.sha256(asked.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Reply:
    """What became of it. `status` is one of HTTP; `detail` says why it is no success."""

    status: int
    detail: str = ""
    clip_ids: list[str] = field(default_factory=list)
    job: str | None = None
    retry_after: int | None = None
    left: int = 0
    """How many of the clips that were asked for the queue had no room for."""


def queue(
    snapshot: Snapshot, select: SelectSettings, refine_approved: bool
) -> dict[Literal["preview", "refine"], list[str]]:
    """Candidates that wait for stage 1 and for stage 2, the longest waiting first."""
    previews = [c for c in snapshot.candidates.values() if c.status == "queued"]
    # Where candidates of a prompt are compared, none goes on before all are there, unless a person said so.
    compared = select.keep is not None or select.duplicates is not None
    incomplete = {c.prompt_id for c in previews} if compared else set()
    refines = [
        c
        for c in snapshot.candidates.values()
        if c.survives
        and not c.is_pruned
        and (c.wish == "refine" or (refine_approved and c.status == "approved"))
        and (c.status == "approved" or c.prompt_id not in incomplete)
    ]
    lines: dict[Literal["preview", "refine"], list[Candidate]] = {"preview": previews, "refine": refines}
    return {
        kind: [c.clip_id for c in sorted(line, key=lambda c: (c.wished_at or c.at, c.candidate, c.clip_id))]
        for kind, line in lines.items()
    }


def accepted(
    submission: Submission,
    snapshot: Snapshot,
    settings: Settings,
    recipe: Mapping[str, Any],
    room: int,
    limit: int,
    retry_after: int,
) -> tuple[Reply, list[dict[str, Any]]]:
    """The answer to a submission, and the request rows that it makes.

    `room` is what the queue still takes of its `limit`; where more clips are asked for, the first of them are taken.
    """
    before = [c for c in snapshot.candidates.values() if submission.key is not None and c.key == submission.key]
    if before and before[0].body != submission.body:
        return Reply(422, "This Idempotency-Key was used for another request."), []
    if before and submission.reseed is not None:
        return Reply(202, "", [c.clip_id for c in before], before[0].job), []
    if submission.refine:
        unfit = [clip_id for clip_id in submission.refine if not _refinable(snapshot.candidates.get(clip_id))]
        if unfit:
            return Reply(409, f"Only previewed and approved candidates are refined, not {', '.join(unfit[:5])}."), []
        removed = [clip_id for clip_id in submission.refine if _lacks_latents(snapshot.candidates[clip_id])]
        if removed:
            return Reply(409, f"{', '.join(removed[:5])}: its latents were removed; `render` makes them anew."), []
        rows = [row_of(snapshot.candidates[clip_id], "refine", submission.by) for clip_id in submission.refine]
    else:
        try:
            made = _candidates(submission, snapshot, settings, recipe)
        except prompts.PromptError as error:
            return Reply(422, str(error)), []
        clash = _clash(made, snapshot)
        if clash is not None:
            return Reply(409, clash), []
        rows = [{**row, "status": submission.wish, "by": submission.by} for row in made]
    clip_ids = [row["clip_id"] for row in rows]
    fresh = [row for row in rows if _adds(row, snapshot.candidates.get(row["clip_id"]))]
    left: set[str] = set()
    if submission.refine and room > 0:
        left = {row["clip_id"] for row in fresh[room:]}
        fresh, clip_ids = fresh[:room], [clip_id for clip_id in clip_ids if clip_id not in left]
    if fresh and len(fresh) > room:
        there = f"{len(fresh)} candidates; the queue has room for {max(0, room)} of {limit} (--queue-limit)."
        return Reply(429, there, retry_after=retry_after), []
    if submission.refine or not fresh:
        return Reply(202, "", clip_ids, snapshot.candidates[clip_ids[0]].job, left=len(left)), fresh
    job = hashlib.sha256((submission.key or uuid.uuid4().hex).encode()).hexdigest()[:20]
    own = {"job": job, "key": submission.key, "body": submission.body}
    return Reply(202, "", clip_ids, job), [{**row, **own} for row in fresh]


def row_of(candidate: Candidate, wish: str, by: str) -> dict[str, Any]:
    """A request row about a candidate that is there."""
    names = ("clip_id", "prompt", "negative_prompt", "seed", "candidate", "job", "key", "body")
    own = {name: getattr(candidate, name) for name in names}
    return {**own, "id": candidate.prompt_id, "status": wish, "by": by}


def _candidates(
    submission: Submission, snapshot: Snapshot, settings: Settings, recipe: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The rows that a batch job would make of the same prompts: they have the same clip_ids."""
    first, count, asked = 0, submission.candidates, list(submission.prompts)
    if submission.reseed is not None:
        like = snapshot.candidates[submission.reseed]
        first = max(c.candidate for c in snapshot.prompts[like.prompt_id]) + 1
        count = 1
        asked = [
            {
                "id": like.prompt_id,
                "prompt": like.prompt,
                "negative_prompt": like.negative_prompt,
                "seed": _base_seed(like.seed, like.candidate),
            }
        ]
    table = prompts.checked(asked, base_seed=settings.seed)
    fingerprint = recipe["fingerprints"]["preview"]
    return identity.candidates(table, count, settings.stage1_recipe(), fingerprint, first).to_pylist()


def _clash(rows: list[dict[str, Any]], snapshot: Snapshot) -> str | None:
    """Why an id cannot be used: another prompt of the run has it."""
    for row in rows:
        there = snapshot.prompts.get(row["id"])
        if there is None:
            continue
        first, mine = there[0], (row["prompt"], row["negative_prompt"], _base_seed(row["seed"], row["candidate"]))
        if mine != (first.prompt, first.negative_prompt, _base_seed(first.seed, first.candidate)):
            return f"The id {row['id']!r} belongs to another prompt or seed of this run; use another one."
    return None


def _adds(row: Mapping[str, Any], there: Candidate | None) -> bool:
    """Whether a request asks for more than there is or is wanted already."""
    if there is None or there.status in ("cancelled", "failed", "skipped"):
        return True
    if there.status == "rendered" or row["status"] == "preview":
        return False
    return there.wish != "refine"


def _refinable(candidate: Candidate | None) -> bool:
    statuses = ("previewed", "approved", "failed", "rendered")
    return candidate is not None and candidate.has_preview and candidate.status in statuses


def _lacks_latents(candidate: Candidate) -> bool:
    return candidate.is_pruned and candidate.status != "rendered"


def _base_seed(seed: int, candidate: int) -> int:
    return (seed - candidate) % _SEEDS
