"""A claim on a run, so that two jobs that are started on one OUTPUT by mistake do not both pay for it.

    OUTPUT/claims/000003.json     generation 3 of the claim: who made it; created once, by exactly one job
    OUTPUT/claims/000003.lease    the same with the time of the last renewal; written by the holder alone

    OUTPUT/claims/shard-3-of-8/…  as above: of a job that works on a share of the prompts, beside jobs on the others
    OUTPUT/claims/report/…        whose turn it is to write the report

The job that created the highest generation holds the run, and renews its lease from a thread. A claim is free if it was
released, if its lease was not renewed for `lease_seconds`, or if its process is known to be dead: the next job takes it
by creating the next generation. Each generation has a lease of its own: a holder that was stopped, overtaken and woken
up cannot touch that of its successor. The highest generation is never deleted, so numbers are never used twice.

Each of these folders is a scope of its own. The whole run excludes its shards, and shards exclude those of another
number (3/8 and 3/7 have prompts in common). Who claims looks first, creates, and looks again: of two that begin at the
same time one sees the other at least, and withdraws. A claim in the way that is not released, lapsed as it may be, is
ended by the next generation in its own folder: its holder, should it wake up, finds that as if it were overtaken.

Clocks: the times in a lease are those of its holder's clock, and those of two machines are expected to agree within
`SKEW` of the lease (6 seconds of 60). No more hangs on that than a wrong waiting time: before a job takes over a claim
that looks lapsed it watches the lease for two renewals, and one that moves is alive whatever the clocks say. How long
its own lease lasts, a holder measures with a clock that nobody sets.

A holder whose lease has ended without a renewal, because the store is away, full or frozen, does not know whether the
run is still its own: the claim is unsure, and nothing is written meanwhile (`held`). When the store answers, either a
newer generation is there, and the claim is lost; or the holder creates the next one itself, as any other job would, and
goes on.
"""

from __future__ import annotations

import datetime as dt
import logging
import posixpath
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from flashvideo_ray.errors import InputError, in_a_line
from flashvideo_ray.ledger.holder import Identity
from flashvideo_ray.ledger.shard import Shard
from flashvideo_ray.ledger.store import Store

SKEW = 0.1
RELEASE_SECONDS = 10.0
SAY_SECONDS = 60.0  # after which a wait is told of again
ROUNDS = 5
WHOLE = "claims"  # scopes
REPORT = f"{WHOLE}/report"
log = logging.getLogger("flashvideo_ray")


class ClaimedError(InputError):
    """Another job holds the run. The message says who, until when, and what to do."""


class ClaimLostError(RuntimeError):
    """This job does not hold the run any more, and must stop paying for it. The message says why."""


class ClaimUnsureError(OSError):
    """Whether this job still holds the run will only be known when the store answers again."""


class Lease(BaseModel):
    """What a claim says when it is made, and again at each renewal."""

    model_config = ConfigDict(frozen=True)

    holder: Identity
    nonce: str
    since: dt.datetime
    renewed: dt.datetime
    lease_seconds: float
    released: bool = False

    def age(self) -> float:
        """Seconds since the last renewal; negative if the holder's clock is ahead of this machine's."""
        return (_utc() - self.renewed).total_seconds()

    def is_over(self) -> bool:
        """Whether nobody need wait for it to lapse: it was released, or its holder is known to be dead."""
        return self.released or self.holder.is_known_dead()

    def seconds_left(self) -> float:
        """Seconds until another job may take the claim over, if it is not renewed."""
        return self.lease_seconds * (1 + SKEW) - self.age()


class Claim:
    """Holds a run while the `with` block lasts.

    Entering raises ClaimedError if another job holds the run, unless `takeover`, which takes it from a living holder
    too; that one learns of it at its next renewal. Taking over a claim that lapsed takes two renewals longer.

    Long work calls `check()` again and again, or waits for `lost`. A claim is lost when another job took it over, or
    when it could not be renewed for a whole lease and `patience_seconds` on top of that. Between the end of the lease
    and that it is unsure: `seconds()` says so, and who writes waits. On leaving the block the claim is released, and
    the next job can start at once.
    """

    def __init__(
        self,
        store: Store,
        identity: Identity,
        lease_seconds: float = 60.0,
        takeover: bool = False,
        patience_seconds: float = 0.0,
        scope: str = WHOLE,
    ):
        self.store = store
        self.scope = scope
        self.patience_seconds = patience_seconds
        self.lease = Lease(
            holder=identity, nonce=uuid.uuid4().hex, since=_utc(), renewed=_utc(), lease_seconds=lease_seconds
        )
        self.generation = 0
        self.lost = threading.Event()
        self.reason = ""
        self._takeover = takeover
        self._deadline = 0.0
        self._trouble = ""
        self._tell: Callable[[float, str], object] | None = None
        self._over = threading.Event()
        # Two threads: a call to a store that went away may return long after the lease has ended.
        self._renewer = threading.Thread(target=self._renew, name="claim-renewer", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="claim-watchdog", daemon=True)

    def check(self) -> None:
        """Raise ClaimLostError if the run is not held any more. Costs nothing: the store is not asked."""
        if clock() >= self._deadline + self.patience_seconds:  # this process was stopped, and its threads sleep still
            self._lose_by_time()
        if self.lost.is_set():
            raise ClaimLostError(self.reason)

    def seconds(self) -> float:
        """For how much longer the run is surely held; not positive while the claim is unsure. Raises as `check`."""
        self.check()
        return self._deadline - clock()

    def report_to(self, tell: Callable[[float, str], object] | None) -> None:
        """Tell somebody, now and at each change, until when the run is held (by `clock`), and why it is lost or ''."""
        self._tell = tell
        self._report()

    def __enter__(self) -> Self:
        takeover = self._takeover
        for _ in range(ROUNDS):
            there = self._in_the_way()
            if not takeover:
                self._refuse_unless_free(there)
            self.generation = there.get(self.scope, 0) + 1
            self._deadline = clock() + self.lease.lease_seconds
            if self.store.create(self._claim_key(self.generation), self._statement()):
                # Again: a generation that came and went while this job was slow is no claim any more.
                now = self._in_the_way()
                if now == {**there, self.scope: self.generation} and self._end_others(there):
                    break
                if now.get(self.scope) == self.generation:  # it is another scope that is in the way
                    self.store.put(self._lease_key(self.generation), self._statement(released=True))
            takeover = False  # another job was first; it is not the one that was meant to lose the run
        else:
            raise ClaimedError(f"{self.store.url} is being claimed by several jobs at this moment.")
        self._renewer.start()
        self._watchdog.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._renewer.join(RELEASE_SECONDS)  # with the store away it goes on without: the claim lapses by itself

    def at_work_beside(self) -> bool:
        """Whether jobs on other shares of the run hold theirs at this moment, as far as their leases tell."""
        return self._any_at_work(
            {scope: last for scope, last in self._listed().items() if scope not in (self.scope, WHOLE, REPORT)}
        )

    def _any_at_work(self, there: Mapping[str, int]) -> bool:
        leases = [self._read(generation, scope) for scope, generation in there.items()]
        return any(lease is not None and not lease.is_over() and lease.seconds_left() > 0 for lease in leases)

    def _refuse_unless_free(self, there: Mapping[str, int]) -> None:
        """Raise ClaimedError if the holder of one of these scopes, by their highest generation, may be alive."""
        suspects: dict[str, Lease | None] = {}
        for scope, generation in there.items():
            lease = self._read(generation, scope)
            if lease is not None and lease.is_over():
                continue
            if lease is not None and lease.seconds_left() > 0:
                raise ClaimedError(self._refusal(scope, lease, lease.age(), lease.seconds_left()))
            # Also an unreadable one, as a machine that lost its power can leave: a living holder will write it anew.
            suspects[scope] = lease
        if not suspects:
            return
        names = ", ".join(_name(lease) for lease in suspects.values())
        log.warning("%s: the claim of %s looks lapsed; watching it before taking over", self.store.url, names)
        longest = max((lease or self.lease).lease_seconds for lease in suspects.values())
        time.sleep(2 * renewal_seconds(longest))
        for scope, lease in suspects.items():
            now = self._read(there[scope], scope)
            if now is not None and now != lease and not now.released:
                raise ClaimedError(self._refusal(scope, now, 0.0, now.lease_seconds))

    def _end_others(self, there: Mapping[str, int]) -> bool:
        """Whether all other claims that were there are at their end now: released, or overtaken by this call."""
        for scope, generation in there.items():
            if scope == self.scope:
                continue
            lease = self._read(generation, scope)
            if lease is not None and lease.released:
                continue
            over = self.lease.model_copy(update={"released": True, "renewed": _utc()})
            if not self.store.create(_key(scope, generation + 1, "json"), over.model_dump_json(indent=2).encode()):
                return False  # its holder has claimed it again just now
        return True

    def _refusal(self, scope: str, lease: Lease, age: float, seconds_left: float) -> str:
        what = f" (its {_words(scope)})" if scope != WHOLE else ""
        other = ""
        if scope != self.scope and WHOLE not in (scope, self.scope):
            other = "All jobs on shares of a run take the same number of shares. "
        return (
            f"{self.store.url}{what} is claimed by another job: {lease.holder}, since {lease.since:%Y-%m-%d %H:%M:%S} "
            f"UTC, renewed {max(0.0, age):.0f} s ago. Without a renewal the claim lapses in {seconds_left:.0f} s. "
            f"{other}Wait for that job or stop it; --takeover takes the run away from it."
        )

    def _renew(self) -> None:
        """The first thread, the only one that writes the lease. Errors of the store are left to the next turn."""
        self._tolerantly(self._clean)
        while not self._over.wait(renewal_seconds(self.lease.lease_seconds)):
            self._tolerantly(self._renew_once)
        self._tolerantly(self._release)

    def _watch(self) -> None:
        """The second thread: says while the claim is unsure, and when it is lost for want of an answer."""
        while not self._over.wait(self._deadline - clock()):
            said = -SAY_SECONDS
            while self._expired() and not self._over.wait(min(1.0, self.lease.lease_seconds / 10)):
                if clock() >= self._deadline + self.patience_seconds:
                    return self._lose_by_time()
                if clock() - said >= SAY_SECONDS:
                    said = clock()
                    log.warning("%s: %s: nothing is written until the store answers", self.store.url, self._silence())

    def _renew_once(self) -> None:
        started = clock()
        if not self._is_newest():
            return
        if started < self._deadline:
            self.store.put(self._lease_key(self.generation), self._statement())
            if self._expired():
                return  # it took too long: another job may have come meanwhile
        elif not self._claim_again():
            return
        self._deadline = started + self.lease.lease_seconds
        self._trouble = ""
        self._report()

    def _claim_again(self) -> bool:
        """After a lease that lapsed: of this job and any that waited for that, one creates the next generation."""
        generation = self.generation + 1
        if not self.store.create(self._claim_key(generation), self._statement()) or self._highest() != generation:
            return False  # the next turn sees whose it is
        self.generation = generation
        log.warning("%s: the store answers, and nobody took the run: going on", self.store.url)
        return True

    def _release(self) -> None:
        if self.lost.is_set():
            with suppress(Exception):  # a renewal may have been under way while another job came, and cleaned
                if self._highest() > self.generation:
                    self.store.delete(self._lease_key(self.generation))
        elif not self._expired() and self._is_newest():
            self.store.put(self._lease_key(self.generation), self._statement(released=True))
            self._clean()

    def _clean(self) -> None:
        for key in self.store.keys(self.scope):
            if posixpath.dirname(key) == self.scope and 0 < _generation(key) < self.generation:
                self.store.delete(key)

    def _is_newest(self) -> bool:
        """Whether nobody has claimed the run after this job, by the store. Raises what the store raises."""
        if self.lost.is_set():
            return False
        highest = max(self._highest(), self.generation)
        # Where the store has no conditional put, two may have created the same generation; and one of this job's own
        # may be there though the answer to creating it was lost. A claim that is not there at all is an error like
        # others: the folder of a share that is not mounted now looks the same.
        if self.lease.nonce.encode() in self.store.get(self._claim_key(highest)):
            self.generation = highest
        else:
            self._lose(f"{_name(self._read(highest))} took it over")
        return not self.lost.is_set()

    def _expired(self) -> bool:
        return clock() >= self._deadline

    def _silence(self) -> str:
        why = self._trouble or "the store did not answer, or this process stood still"
        seconds = self.lease.lease_seconds + max(0.0, clock() - self._deadline)
        return f"the claim was not renewed for {seconds:.0f} s ({why})"

    def _lose_by_time(self) -> None:
        self._lose(f"{self._silence()}, and another job may take the run")

    def _lose(self, reason: str) -> None:
        if not self.lost.is_set():
            self.reason = f"The claim on {self.store.url} is lost: {reason}."
            self.lost.set()
            self._over.set()
            self._report()
            log.error("%s", self.reason)

    def _report(self) -> None:
        if self._tell is not None:
            with suppress(Exception):  # whoever does not hear it any more does not write any more
                self._tell(self._deadline, self.reason)

    def _tolerantly(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # each file system has its own
            self._trouble = in_a_line(error)
            log.warning("%s: trouble with the claim: %s", self.store.url, self._trouble)
            if isinstance(error, PermissionError):
                with suppress(Exception):
                    self.store.reconnect()

    def _highest(self) -> int:
        return self._listed(self.scope).get(self.scope, 0)

    def _listed(self, folder: str = WHOLE) -> dict[str, int]:
        """The highest generation of each scope in a folder."""
        found: dict[str, int] = {}
        for key in self.store.keys(folder, ".json"):
            scope = posixpath.dirname(key)
            found[scope] = max(found.get(scope, 0), _generation(key))
        return found

    def _in_the_way(self) -> dict[str, int]:
        """The highest generation of this scope, and of those that it excludes."""
        if self.scope == REPORT:
            return self._listed(self.scope)
        return {scope: last for scope, last in self._listed().items() if _excludes(self.scope, scope)}

    def _read(self, generation: int, scope: str | None = None) -> Lease | None:
        """The newest that a generation says, or None if it cannot be read."""
        for end in ("lease", "json"):
            with suppress(FileNotFoundError, ValidationError):
                return Lease.model_validate_json(self.store.get(_key(scope or self.scope, generation, end)))
        return None

    def _claim_key(self, generation: int) -> str:
        return _key(self.scope, generation, "json")

    def _lease_key(self, generation: int) -> str:
        return _key(self.scope, generation, "lease")

    def _statement(self, released: bool = False) -> bytes:
        self.lease = self.lease.model_copy(update={"renewed": _utc(), "released": released})
        return self.lease.model_dump_json(indent=2).encode()


def _key(scope: str, generation: int, end: str) -> str:
    return f"{scope}/{generation:06d}.{end}"


def at_work(store: Store, scope: str = WHOLE) -> bool:
    """Whether a job is at work that keeps others from this scope at this moment, as far as the leases tell."""
    claim = Claim(store, Identity.of_this_process(), scope=scope)
    return claim._any_at_work(claim._in_the_way())


def scope_of(shard: Shard | None) -> str:
    """Of a job that works on a share of the prompts, or on the whole run."""
    return WHOLE if shard is None else f"{WHOLE}/{shard.name}"


def _excludes(one: str, other: str) -> bool:
    """Whether nobody may hold one scope while somebody else holds the other."""
    if one == other or REPORT in (one, other):
        return one == other
    return WHOLE in (one, other) or one.rpartition("-")[2] != other.rpartition("-")[2]


def _words(scope: str) -> str:
    number, _, count = posixpath.basename(scope).removeprefix("shard-").partition("-of-")
    return f"shard {number}/{count}" if count else "report"


def _generation(key: str) -> int:
    name = posixpath.basename(key).partition(".")[0]
    return int(name) if name.isdecimal() else 0


def renewal_seconds(lease_seconds: float) -> float:
    """Seconds between two renewals."""
    return min(5.0, lease_seconds / 12)


def _name(lease: Lease | None) -> str:
    return str(lease.holder) if lease is not None else "another job"


def _utc() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def clock() -> float:
    """Seconds by a clock that nobody sets, the same for all processes of a machine; it goes on while that sleeps."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)
