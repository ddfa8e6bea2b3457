"""Where a stage cannot work, and when it cannot work at all. Pure bookkeeping, no Ray."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from flashvideo_ray.settings import Stage

Order = Literal["go", "stop", "leave"]
"""What a call is to do: begin; let its row pass, as the job ends; or end its process, as the node is left out."""

QUIET_SECONDS = 5.0  # rows are on their way from one stage to the next for less
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True)
class Worker:
    """An actor, which keeps its name when its process is replaced, and the node and the card that it runs on."""

    actor: str = ""
    node: str = ""
    host: str = ""
    card: str = ""  # by its number on the node; '' without one


@dataclass(frozen=True)
class Fault:
    """Why a stage does not run on a node or on one of its cards, or, where no node is named, on none.

    `candidates` are those that failed there: they failed of the place, and may be tried elsewhere.
    """

    stage: Stage
    cause: str
    node: str | None = None
    host: str | None = None
    card: str = ""
    candidates: tuple[str, ...] = ()

    def __str__(self) -> str:
        card = f", card {self.card}" if self.card else ""
        return f"{self.stage} on {self.host}{card}: {self.cause}" if self.host else f"{self.stage}: {self.cause}"


_Place = tuple[Stage, str, str]  # a stage on a node, and on which card of it; '' for all of the node
_ELSEWHERE = 2  # failures at another place, by which a place alone is not to blame


class Health:
    """Counts starts that came to nothing, and failures that are alike, by stage, node and card.

    A node on which a stage fails to load, or fails `limit` times in a row with one class of error while others work or
    are about to, is left out; so is one card of a node whose others work. Its actors take no more rows. They wait until
    nothing else is left to do and are then dismissed, so that a new round can do what they held. A stage that fails
    alike everywhere is stopped, and the job with it. `sizes` is how many actors each pool has, `left_out` what earlier
    rounds have found.
    """

    def __init__(
        self,
        limit: int,
        sizes: Mapping[Stage, int],
        clock: Callable[[], float] = time.monotonic,
        left_out: Sequence[Fault] = (),
    ):
        self._limit = limit
        self._sizes = sizes
        self._clock = clock
        self._last_event = clock()
        self._loading: dict[tuple[Stage, str], Worker] = {}  # by stage and actor
        self._working: defaultdict[Stage, dict[str, Worker]] = defaultdict(dict)  # by actor
        self._waiting: defaultdict[Stage, dict[str, Worker]] = defaultdict(dict)  # that could not load, by actor
        self._deaths: Counter[_Place] = Counter()  # while loading, since one loaded
        self._known = {(fault.stage, fault.node or "", fault.card): fault for fault in left_out}
        self._out: dict[_Place, Fault] = {}
        self._expelled = set(self._known)  # of those left out: for their failures, however well they load
        self._open: dict[tuple[Stage, str], Worker] = {}  # who has each call
        self._alike: dict[Stage, tuple[str, Counter[_Place]]] = {}  # class of error, and how often on each card
        self._alike_here: dict[_Place, tuple[str, list[str]]] = {}  # class of error, and the candidates
        self._lost: defaultdict[_Place, list[str]] = defaultdict(list)  # candidates, to places that are left out
        self.stopped: Fault | None = None

    def starting(self, stage: Stage, worker: Worker) -> float | None:
        """A process of an actor is about to load. Returns the seconds that it is to pause before; None: not to load."""
        self._last_event = self._clock()
        place = _node(stage, worker)
        self._working[stage].pop(worker.actor, None)
        if (stage, worker.actor) in self._loading:
            self._deaths[place] += 1
        if self._deaths[place] >= self._limit:
            self._give_up(stage, worker, f"its process died {self._deaths[place]} times in a row while loading")
        before = self._waiting[stage].get(worker.actor)
        here_before = before is not None and before.node == worker.node
        expelled = self._is_expelled(stage, worker)
        if expelled or (place in self._out and (here_before or not self._works_on(place))):
            self._loading.pop((stage, worker.actor), None)
            self._waiting[stage][worker.actor] = worker
            self._blame_nodes(stage)
            return None
        self._waiting[stage].pop(worker.actor, None)
        self._loading[stage, worker.actor] = worker
        return min(2.0 ** (self._deaths[place] - 1), _LONGEST_PAUSE) if self._deaths[place] else 0.0

    def not_loaded(self, stage: Stage, worker: Worker, cause: str) -> None:
        """A process tried to load, more than once, and could not."""
        self._last_event = self._clock()
        self._loading.pop((stage, worker.actor), None)
        self._give_up(stage, worker, cause)

    def joined(self, stage: Stage, worker: Worker) -> None:
        """A process has loaded and takes work."""
        self._last_event = self._clock()
        self._loading.pop((stage, worker.actor), None)
        self._working[stage][worker.actor] = worker
        self._deaths.pop(_node(stage, worker), None)

    def began(self, stage: Stage, clip_id: str, worker: Worker) -> Order:
        """A call is about to begin; whether it is to."""
        self._last_event = self._clock()
        if self.stopped is not None:
            return "stop"
        if self._is_expelled(stage, worker):
            # The calls beside this one end with the process, which may never be started again: its place may be taken.
            self._open = {call: who for call, who in self._open.items() if who.actor != worker.actor}
            return "leave"
        self._open[stage, clip_id] = worker
        return "go"

    def nodes(self, there: Collection[str]) -> list[tuple[Stage, str]]:
        """The nodes that are there now. Nobody works or loads on others; returns the calls that were open there."""
        gone = [call for call, who in self._open.items() if _is_gone(who, there)]
        for call in gone:
            del self._open[call]
        for at_work in self._working.values():
            for actor in [actor for actor, who in at_work.items() if _is_gone(who, there)]:
                del at_work[actor]
        self._loading = {key: who for key, who in self._loading.items() if not _is_gone(who, there)}
        return gone

    @property
    def loads(self) -> bool:
        """Whether an actor is about to join."""
        return bool(self._loading)

    def ended(self, stage: Stage, clip_id: str, worker: Worker, error: tuple[str, str] | None) -> None:
        """A call ended, well or with a class of error and a message."""
        self._last_event = self._clock()
        self._open.pop((stage, clip_id), None)
        places = dict.fromkeys([_node(stage, worker), _card(stage, worker)])
        if error is None:
            self._alike.pop(stage, None)
            for place in places:
                self._alike_here.pop(place, None)
            return
        if self._is_expelled(stage, worker):  # it had begun before
            for place in self._expelled.intersection(places):
                self._lost[place].append(clip_id)
            return
        kind, message = error
        for place in places:
            before, candidates = self._alike_here.get(place, (kind, []))
            self._alike_here[place] = (kind, [*(candidates if before == kind else []), clip_id])
        before, cards = self._alike.get(stage, (kind, Counter()))
        if before != kind:
            cards = Counter()
        cards[_card(stage, worker)] += 1
        self._alike[stage] = (kind, cards)
        self._judge(stage, worker, kind, message, cards)

    def _judge(self, stage: Stage, worker: Worker, kind: str, message: str, cards: Counter[_Place]) -> None:
        """A card's fault, its node's, or everybody's: a bad one may fail faster than the others can succeed."""
        node, card = _node(stage, worker), _card(stage, worker)
        # Who still loads may work: the first to be ready is not everybody.
        others = [*self._working[stage].values(), *(who for (of, _), who in self._loading.items() if of == stage)]
        others = [other for other in others if not self._is_expelled(stage, other)]
        other_nodes = any(other.node != worker.node for other in others)
        other_cards = any(_node(stage, other) == node and _card(stage, other) != card for other in others)
        by_place: Counter[_Place] = Counter()
        for (of, on, number), count in cards.items():
            by_place[(of, on, "") if other_nodes else (of, on, number)] += count
        total, enough = cards.total(), min(_ELSEWHERE, self._limit - 1)
        elsewhere = total - max(by_place.values())
        on_node, on_card = (len(self._alike_here[place][1]) for place in (node, card))
        if total >= self._limit and (not (other_nodes or other_cards) or elsewhere >= enough):
            self.stopped = self.stopped or Fault(stage, f"{kind}, {total} times in a row: {message}")
        elif on_node >= self._limit and other_nodes and (on_node - on_card >= enough or not other_cards):
            self._expel(node, worker, f"{kind}, {on_node} times in a row: {message}", cards)
        elif on_card >= self._limit and (other_cards or other_nodes):
            self._expel(card, worker, f"{kind}, {on_card} times in a row: {message}", cards)

    def _expel(self, place: _Place, worker: Worker, cause: str, cards: Counter[_Place]) -> None:
        stage, node, card = place
        self._out[place] = Fault(stage, cause, node, worker.host, card)
        self._expelled.add(place)
        self._lost[place].extend(self._alike_here[place][1])
        for of in [of for of in cards if of[1] == node and card in ("", of[2])]:
            del cards[of]  # they say nothing about the others

    def _is_expelled(self, stage: Stage, worker: Worker) -> bool:
        return not self._expelled.isdisjoint([_node(stage, worker), _card(stage, worker)])

    def _works_on(self, node: _Place) -> bool:
        return any(_node(node[0], worker) == node for worker in self._working[node[0]].values())

    def _give_up(self, stage: Stage, worker: Worker, cause: str) -> None:
        self._waiting[stage][worker.actor] = worker
        self._out.setdefault(_node(stage, worker), Fault(stage, cause, worker.node, worker.host))

    def _blame_nodes(self, stage: Stage) -> None:
        """Where a whole pool was given cards that are left out, their nodes are: a card cannot be asked for."""
        if len(self._waiting[stage]) < self._sizes.get(stage, 1):
            return
        for worker in self._waiting[stage].values():
            if (fault := self._known.get(_card(stage, worker))) is not None:
                self._out.setdefault(_node(stage, worker), replace(fault, card="", candidates=()))

    def dismissed(self, stage: Stage) -> bool:
        """Whether an actor that waits, because its node is left out, may end, and the round with it.

        That is when no other of its pool is left, or when all others are done: nothing loads, no call is open, and for
        some seconds nothing has come.
        """
        if len(self._waiting[stage]) >= self._sizes.get(stage, 1):
            return True
        waiting = set().union(*self._waiting.values())
        if self._loading or any(who.actor not in waiting for who in self._open.values()):
            return False
        return self._clock() - self._last_event >= QUIET_SECONDS

    @property
    def faults(self) -> list[Fault]:
        """What is left out since: where nobody of the stage works now, or that fails whatever it gets."""
        return [
            replace(fault, candidates=tuple(self._lost.get(place, ())))
            for place, fault in self._out.items()
            if place in self._expelled or not self._works_on((place[0], place[1], ""))
        ]


def _is_gone(worker: Worker, there: Collection[str]) -> bool:
    return bool(worker.node) and worker.node not in there


def _node(stage: Stage, worker: Worker) -> _Place:
    return stage, worker.node, ""


def _card(stage: Stage, worker: Worker) -> _Place:
    return stage, worker.node, worker.card
