"""What the routes do. One in each replica of the API; the run directory and the scheduler are what they share."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from flashvideo_ray import engines
from flashvideo_ray.accounting import billing
from flashvideo_ray.errors import Teller
from flashvideo_ray.ledger import decisions, run_file
from flashvideo_ray.ledger.keys import clip_key, poster_key, preview_key
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.serve.events import Hub
from flashvideo_ray.serve.problems import Problem
from flashvideo_ray.serve.queue import Reply, Submission
from flashvideo_ray.serve.snapshot import DECIDABLE, Candidate, Filter, Snapshot
from flashvideo_ray.serve.state import RunState
from flashvideo_ray.settings import Settings, Stage

ASK_SECONDS = 0.5  # between two questions to the scheduler
RUN_SECONDS = 2.0  # between two events about the whole run
_MANY = 500  # changes at once, after which pages had better load anew
_NEAR = 50  # places in the queue of which each step is told
CLIP_ID = re.compile(r"[0-9a-f]{20}")
BASE = "/api/v1"
_MEDIA = {
    "preview.mp4": (preview_key, "preview", "video/mp4"),
    "preview.jpg": (lambda clip_id: poster_key(preview_key(clip_id)), "preview_poster", "image/jpeg"),
    "clip.mp4": (clip_key, "clip", "video/mp4"),
    "clip.jpg": (lambda clip_id: poster_key(clip_key(clip_id)), "clip_poster", "image/jpeg"),
}
log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Said:
    """What stood about a preview: somebody's word and note, or `cleared`, which is nobody's."""

    word: decisions.Word = "cleared"
    by: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Undo:
    """A decision to be taken back: the word that was given, and what stood before it."""

    clip_id: str
    word: decisions.Word
    before: Said


class Service:
    """The run, as the API shows and changes it. Made within a running event loop, which it uses to keep up to date."""

    def __init__(self, output: str, settings: Settings, scheduler: DeploymentHandle, refine_approved: bool = False):
        self.store = Store(output)
        self.settings = settings
        self.vocabulary = engines.vocabulary_of(settings.preview.model)
        self.refine_approved = refine_approved
        self.scheduler = scheduler
        self.state = RunState(self.store, settings)
        self.hub = Hub()
        self.created = (run_file.read_run(self.store) or {}).get("created")
        self.active: dict[str, str] = {}
        """The status of candidates that are being worked on."""
        self._calls: dict[str, dict[str, Any]] = {}
        self._held: str | None = None
        self._texts: dict[str, tuple[Candidate, str]] = {}
        self._run: tuple[Snapshot | None, Any, dict[str, Any]] = (None, None, {})
        self._told: Snapshot = self.state.refresh()
        self._version = -1
        self._run_told: tuple[float, Any] = (0.0, None)
        self._refreshing = asyncio.Lock()
        loop = asyncio.get_running_loop()
        self._loops = [
            loop.create_task(self._again(*each))
            for each in ((self._look, self.state.look_seconds), (self._ask, ASK_SECONDS))
        ]

    def close(self) -> None:
        """Stop following the run."""
        for task in self._loops:
            task.cancel()

    # Reading ----------------------------------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """The run now."""
        return self.state.snapshot

    def candidate(self, clip_id: str) -> Candidate:
        """The candidate of that id. Raises Problem 404, for what is no id at all, too."""
        found = self.snapshot.candidates.get(clip_id) if CLIP_ID.fullmatch(clip_id) else None
        if found is None:
            raise Problem(404, "There is no such candidate.")
        return found

    def media(self, clip_id: str, name: str) -> tuple[str, str]:
        """Key and type of one of a candidate's media: the key is made from a known id, never from what was sent."""
        candidate = self.candidate(clip_id)
        if name not in _MEDIA:
            raise Problem(404, f"There are {', '.join(_MEDIA)}.")
        key_of, attribute, kind = _MEDIA[name]
        if getattr(candidate, attribute) is None:
            raise Problem(404, "It is not made yet, or not kept.")
        return key_of(candidate.clip_id), kind

    def status(self, candidate: Candidate) -> str:
        """Its status at this moment."""
        return self.active.get(candidate.clip_id, candidate.status)

    def decidable(self, candidate: Candidate) -> bool:
        """Whether a decision about it would count: it has a preview, and no clip is there or being made."""
        return candidate.has_preview and self.status(candidate) in DECIDABLE

    def shown(self, candidate: Candidate) -> dict[str, Any]:
        """A candidate as JSON."""
        own, call = candidate, self._calls.get(candidate.clip_id)
        decision = own.decision if own.decision is not None and own.decision["status"] != "cleared" else None
        unknown = self.vocabulary.unknown_words(own.prompt) if self.vocabulary is not None else []
        address = f"{BASE}/media/{own.clip_id}/"
        media = {
            "preview": own.preview and f"{address}preview.mp4",
            "poster": own.preview_poster and f"{address}preview.jpg",
            "clip": own.clip and f"{address}clip.mp4",
            "clip_poster": own.clip_poster and f"{address}clip.jpg",
        }
        return {
            "clip_id": own.clip_id,
            "prompt_id": own.prompt_id,
            "prompt": own.prompt,
            "negative_prompt": own.negative_prompt,
            "seed": own.seed,
            "candidate": own.candidate,
            "status": self.status(own),
            "reason": own.reason,
            "rank": own.rank,
            "scores": own.scores,
            "decision": decision
            and {"word": decision["status"], **{name: _plain(decision[name]) for name in ("by", "at", "note")}},
            **media,
            "seconds": {"preview": own.preview_seconds, "refine": own.refine_seconds},
            "memory_notes": {"preview": own.preview_note, "refine": own.refine_note},
            "error": own.error,
            "unknown_words": unknown,
            "progress": call and {name: call[name] for name in _PROGRESS},
            "job": own.job,
            "at": _plain(own.at),
            "made": _plain(own.made),
        }

    def text(self, candidate: Candidate) -> str:
        """A candidate as JSON text, kept for as long as it does not change: many look at the same page."""
        if candidate.clip_id in self._calls:
            return as_text(self.shown(candidate))
        of, text = self._texts.get(candidate.clip_id, (None, ""))
        if of is not candidate:
            text = as_text(self.shown(candidate))
            self._texts[candidate.clip_id] = (candidate, text)
        return text

    def run(self) -> dict[str, Any]:
        """The run as JSON."""
        if self._run[0] is not self.snapshot or self._run[1] is not self._calls:
            self._run = (self.snapshot, self._calls, self._describe())
        return self._run[2]

    def _describe(self) -> dict[str, Any]:
        snapshot, active = self.snapshot, self.active
        status = Counter(active.get(c.clip_id, c.status) for c in snapshot.candidates.values())
        mean = snapshot.mean("refine")
        return {
            "name": self.store.url.rstrip("/").rpartition("/")[2],
            "created": self.created,
            "candidates": len(snapshot.candidates),
            "prompts": len(snapshot.prompts),
            "status": dict(status),
            "scores": list(snapshot.scores),
            "rank": self.settings.select.rank,
            "require": list(self.settings.select.require),
            "preview_seconds_mean": snapshot.mean("preview"),
            "refine_seconds_mean": mean,
            "price": {"currency": self.settings.prices.currency, "per_clip": self._money("refine", mean)},
            "spent": {
                "preview_seconds": snapshot.total("preview"),
                "refine_seconds": snapshot.total("refine"),
                "money": _add(
                    [self._money("preview", snapshot.total("preview")), self._money("refine", snapshot.total("refine"))]
                ),
            },
            "saved_seconds": None if mean is None else status["rejected"] * mean,
            "waiting_for": self._held,
            "accepting": True,
            "refine_approved": self.refine_approved,
            "model": self.settings.preview.model,
            "example_prompts": list(self.vocabulary.examples) if self.vocabulary is not None else [],
        }

    def estimate(self, chosen: Sequence[Candidate]) -> dict[str, Any]:
        """What clips of these would cost that have none yet; `removed` are those that have no latents any more."""
        clips = sum(c.clip is None and not c.is_pruned for c in chosen)
        mean = self.snapshot.mean("refine")
        return {
            "clips": clips,
            "removed": sum(c.clip is None and c.is_pruned for c in chosen),
            "seconds": None if mean is None else clips * mean,
            "money": None if mean is None else self._money("refine", clips * mean),
            "currency": self.settings.prices.currency,
        }

    def chosen(self, clip_ids: Sequence[str] | None, given: Mapping[str, Any] | None) -> list[Candidate]:
        """Candidates by their ids, or those that a filter matches. Raises Problem, QueryError."""
        if (clip_ids is None) == (given is None):
            raise Problem(422, "Give either clip_ids or a filter.")
        if clip_ids is not None:
            return [self.candidate(clip_id) for clip_id in dict.fromkeys(clip_ids)]
        return self.snapshot.matching(Filter.parse(given or {}, self.snapshot.scores), self.active)

    def _money(self, stage: Stage, seconds: float | None) -> float | None:
        """What so many seconds of a stage cost on the devices that it has run on; None without a price or a time."""
        total = self.snapshot.total(stage)
        if seconds is None or not total:
            return None
        shares = {device: own / total for device, (_, own) in self.snapshot.seconds[stage].items()}
        return _add(
            billing.line(stage, device or None, seconds * share, 1, self.settings).money
            for device, share in shares.items()
        )

    # Changing ---------------------------------------------------------------------------------------------------

    async def submit(self, submission: Submission) -> Reply:
        """Hand a submission to the scheduler. Raises Problem where it is refused."""
        return await self._replied(self.scheduler.submit.remote(submission))

    async def cancel(self, clip_id: str, by: str) -> Reply:
        """Take back what is wanted of a candidate. Raises Problem where it is too late."""
        return await self._replied(self.scheduler.cancel.remote(self.candidate(clip_id).clip_id, by))

    async def decide(self, made: Sequence[decisions.Decision]) -> list[dict[str, Any]]:
        """Make decisions durable; the candidates as they are then. Raises Problem where one would not count."""
        for decision in made:
            candidate = self.candidate(decision.clip_id)
            if not candidate.has_preview:
                raise Problem(409, f"{decision.clip_id} has no preview yet: there is nothing to decide about.")
            if not self.decidable(candidate):
                raise Problem(
                    409, f"{decision.clip_id} is {self.status(candidate)}: a decision would not count any more."
                )
        await asyncio.to_thread(decisions.write, self.store, made)
        await self._look()
        return [self.shown(self.candidate(decision.clip_id)) for decision in made]

    async def undo(self, steps: Sequence[Undo], by: str) -> tuple[list[dict[str, Any]], list[str]]:
        """Take back what `by` decided, where it still stands; the candidates then, and the ids of those left alone.

        What stood before comes back as it was said, with its author and note. A decision of somebody else that came
        meanwhile stays, as does one that does not count any more.
        """
        made, left = [], []
        await self._look()  # another replica may have taken a decision just now
        for step in steps:
            candidate = self.candidate(step.clip_id)
            now, before = candidate.decision, step.before
            mine = now is not None and (now["status"], now["by"]) == (step.word, by)
            known = before.word == "cleared" or self.state.said(step.clip_id, before.word, before.by or "", before.note)
            if mine and known and self.decidable(candidate):
                author = by if before.word == "cleared" or before.by is None else before.by
                made.append(decisions.Decision(step.clip_id, before.word, author, before.note))
            else:
                left.append(step.clip_id)
        await asyncio.to_thread(decisions.write, self.store, made)
        await self._look()
        return [self.shown(self.candidate(step.clip_id)) for step in steps], left

    async def _replied(self, answer: Any) -> Reply:
        try:
            reply: Reply = await asyncio.wait_for(answer, 60)
        except (TimeoutError, RayActorError, DeploymentUnavailableError):
            why = "The scheduler is being replaced. Ask again, with the same Idempotency-Key if you gave one."
            raise Problem(503, why, headers={"Retry-After": "10"}) from None
        if reply.status >= 400:
            after = {} if reply.retry_after is None else {"Retry-After": str(reply.retry_after)}
            raise Problem(reply.status, reply.detail, headers=after)
        await self._look()
        return reply

    # Keeping up -------------------------------------------------------------------------------------------------

    async def _again(self, act: Callable[[], Awaitable[None]], seconds: float) -> None:
        trouble = Teller(lambda line: log.warning("api: %s; trying again", line))
        while True:
            try:
                await act()
                trouble.well()
            except Exception as error:  # the store is away, or the scheduler is being replaced
                trouble.tell(error)
            await asyncio.sleep(seconds)

    async def _look(self) -> None:
        """Take in what is new in the run directory, and tell who watches."""
        async with self._refreshing:
            snapshot = await asyncio.to_thread(self.state.refresh)
            before, self._told = self._told, snapshot
            known = before.candidates
            changed = (
                [c for c in snapshot.candidates.values() if c is not known.get(c.clip_id)]
                if snapshot is not before
                else []
            )
            if len(changed) > _MANY:
                self.hub.tell("reload", {})
            else:
                for candidate in changed:
                    self.hub.tell("candidate", self.shown(candidate))

    async def _ask(self) -> None:
        """Ask the scheduler what it does, and tell who watches."""
        work = await asyncio.wait_for(self.scheduler.work.remote(), 30)
        if work["version"] != self._version:
            await self._look()
            self._version = work["version"]
        before, active = self._calls, self.active
        self._calls, self._held = work["calls"], work["held"]
        names = {"preview": "previewing", "refine": "refining"}
        self.active = {clip_id: names[call["kind"]] for clip_id, call in self._calls.items() if call["kind"]}
        for clip_id in sorted({*before, *self._calls}):
            call, candidate = self._calls.get(clip_id), self.snapshot.candidates.get(clip_id)
            if candidate is not None and active.get(clip_id) != self.active.get(clip_id):
                self.hub.tell("candidate", self.shown(candidate))
            elif call is not None and call != before.get(clip_id) and call["queue_position"] <= _NEAR:
                self.hub.tell("progress", {"clip_id": clip_id, **{name: call[name] for name in _PROGRESS}})
        at, told = self._run_told
        run = self.run()
        if run != told and time.monotonic() - at >= RUN_SECONDS:
            self.hub.tell("run", run)
            self._run_told = (time.monotonic(), run)


_PROGRESS = ("stage", "done", "total", "seconds_left", "queue_position")


def as_text(content: Any) -> str:
    """Compact JSON."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    return value.isoformat(timespec="milliseconds") if hasattr(value, "isoformat") else value


def _add(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
