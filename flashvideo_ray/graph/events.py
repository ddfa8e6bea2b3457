"""What a stage tells about its work, and what it asks: of a batch job's tracker, or of the service that called it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flashvideo_ray.graph.health import Order
from flashvideo_ray.graph.quota import Answer
from flashvideo_ray.settings import Stage


@dataclass(frozen=True)
class Attempt:
    """How many times a call had the device, this time included, and whether it ever ran over its time limit.

    The times before ended with the death of the process.
    """

    count: int
    overdue: bool


@dataclass(frozen=True)
class Begin:
    """How many times a call was started without an end, this time included, and what it is to do."""

    count: int
    order: Order = "go"


class StageEvents(Protocol):
    """What a stage tells about its work, and what it asks."""

    def starting(self, stage: Stage) -> float | None:
        """A process of the stage is about to load. Returns seconds to pause before, or None: it is not to load here."""

    def not_loaded(self, stage: Stage, cause: str) -> None:
        """The process tried to load, more than once, and could not."""

    def dismissed(self, stage: Stage) -> bool:
        """Whether a process that is not to load, or could not, may end, and the round of the job with it."""

    def admit(self, stage: Stage, clip_id: str, prompt: str) -> Answer:
        """Whether a call may begin, or the run has enough. `prompt` is the prompt's id."""

    def joined(self, stage: Stage) -> None:
        """An actor of the stage has loaded its model and takes work."""

    def begin(self, stage: Stage, clip_id: str) -> Begin:
        """A call starts."""

    def attempt(self, stage: Stage, clip_id: str) -> Attempt:
        """A call is next to get the device. The calls of a process get it in the order in which they tell this."""

    def step(self, stage: Stage, clip_id: str, done: int, total: int) -> None:
        """A call that has the device has made so many of its steps."""

    def overdue(self, stage: Stage, clip_id: str) -> None:
        """A call that has the device is over its time limit: its process is about to end itself."""

    def survived(self, stage: Stage, clip_id: str) -> None:
        """A call gave the device back: its process did not die of it."""

    def end(self, stage: Stage, clip_id: str, status: str, error: tuple[str, str] | None = None) -> None:
        """A call ended; the row's status now, and where it failed the class of the error and its message."""

    def gather(self, row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """A candidate is there to be judged with the `group` of its prompt.

        Returns all of the group to the one that makes it complete, and None to the others. The same row asked about
        again, by a call that is repeated, gets the same answer.
        """

    def previewed(self, rows: Sequence[Mapping[str, Any]]) -> Collection[str]:
        """Previews are in the store and judged; their ledger rows.

        Returns the clip_ids of those that have ended with it and are to go no further. A call that is repeated gets the
        same answer, whatever it finds.
        """
