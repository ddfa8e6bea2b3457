"""One job at a time holds a run, whatever becomes of the job or of the store."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from support import S3

from flashvideo_ray.ledger.claim import REPORT, Claim, ClaimedError, ClaimLostError, Lease, renewal_seconds, scope_of
from flashvideo_ray.ledger.held_store import turn
from flashvideo_ray.ledger.holder import Identity
from flashvideo_ray.ledger.shard import Shard
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import Settings

# Processes come from a server that has imported everything: a race of eight costs no eight starts of Python.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__, "s3fs"])
PATIENCE = Settings().store_patience_seconds / Settings().ledger.lease_seconds  # leases; the defaults' proportion
ME = Identity(host="alpha", pid=7, user="ann", command="render a b", ray_job="raysubmit_1")


def job(parent: Connection, environment: dict[str, str], url: str, lease_seconds: float) -> None:
    """Claim at each message, which names a shard or nothing; hold it until the next one, or until it is lost."""
    os.environ.update(environment)
    store = Store(url)
    # As a job on another machine: nobody here can see whether its process is alive.
    elsewhere = Identity.of_this_process().model_copy(update={"pids": None})
    store.keys("claims")  # the connection is open before anyone races
    parent.send("ready")
    while (shard := parent.recv()) is not None:
        scope = scope_of(Shard.parse(shard) if shard else None)
        try:
            with Claim(store, elsewhere, lease_seconds, False, PATIENCE * lease_seconds, scope) as claim:
                parent.send(f"holds {claim.generation}")
                while not claim.lost.is_set() and not parent.poll(0.05):
                    pass
                claim.check()
        except (ClaimedError, ClaimLostError) as error:
            parent.send(f"{type(error).__name__}: {error}")


class Job:
    """A process that runs `job`."""

    def __init__(self, store: Store, lease_seconds: float):
        self.connection, theirs = PROCESSES.Pipe()
        aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        self.process = PROCESSES.Process(target=job, args=(theirs, aws, store.url, lease_seconds))
        self.process.start()

    def says(self) -> str:
        assert self.connection.poll(100), "the job says nothing"
        return self.connection.recv()

    def tell(self, shard: str = "") -> None:
        self.connection.send(shard)

    def claims(self, shard: str = "") -> str:
        self.tell(shard)
        return self.says()

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        if self.process.is_alive():
            os.kill(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.join()


StartJobs = Callable[[Store, float, int], list[Job]]


@pytest.fixture
def start() -> Iterator[StartJobs]:
    """Start jobs, and wait until they are ready to claim."""
    jobs: list[Job] = []

    def start(store: Store, lease_seconds: float, count: int) -> list[Job]:
        new = [Job(store, lease_seconds) for _ in range(count)]
        jobs.extend(new)
        assert [each.says() for each in new] == ["ready"] * count
        return new

    yield start
    for each in jobs:
        each.signal(signal.SIGKILL)


def lease(store: Store, generation: int = 1) -> Lease:
    return Lease.model_validate_json(store.get(f"claims/{generation:06d}.lease"))


def wait_until_lapsed(store: Store, generation: int = 1) -> None:
    try:
        last = lease(store, generation)
    except FileNotFoundError:
        last = Lease.model_validate_json(store.get(f"claims/{generation:06d}.json"))
    time.sleep(max(0.0, last.seconds_left()))


def wait_for_renewal(store: Store, after: dt.datetime) -> None:
    while True:
        try:
            if lease(store).renewed > after:
                return
        except FileNotFoundError:  # not renewed for the first time yet
            pass
        time.sleep(0.05)


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def test_a_second_job_is_refused_until_the_first_releases(store: Store) -> None:
    with Claim(store, ME) as claim:
        with pytest.raises(ClaimedError) as refused, Claim(store, Identity.of_this_process()):
            pass
        claim.check()
    message = str(refused.value)
    assert "\n" not in message
    for part in (store.url, "pid 7 on alpha, user ann, Ray job raysubmit_1 (`render a b`)", "since", "--takeover"):
        assert part in message
    assert lease(store).released
    with Claim(store, Identity.of_this_process()) as claim:
        assert claim.generation == 2
    assert store.keys() == ["claims/000002.json", "claims/000002.lease"]


def test_a_killed_job_is_succeeded_when_its_lease_has_lapsed(store: Store, start: StartJobs) -> None:
    [holder] = start(store, 3, 1)
    assert holder.claims() == "holds 1"
    holder.signal(signal.SIGKILL)
    with pytest.raises(ClaimedError, match=f"pid {holder.process.pid}"), Claim(store, ME):
        pass
    wait_until_lapsed(store)
    with Claim(store, ME) as claim:
        assert claim.generation == 2


def hold(url: str) -> None:
    with Claim(Store(url), Identity.of_this_process()):
        time.sleep(600)


def test_a_job_of_this_machine_that_was_killed_is_succeeded_at_once(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    holder = PROCESSES.Process(target=hold, args=(store.url,))
    holder.start()
    while not store.keys("claims", ".json"):
        time.sleep(0.05)
    with pytest.raises(ClaimedError, match=f"pid {holder.pid}"), Claim(store, Identity.of_this_process()):
        pass
    holder.kill()
    holder.join()
    with Claim(store, Identity.of_this_process()) as claim:  # its lease of a minute has not lapsed
        assert claim.generation == 2


def test_a_job_of_another_machine_that_has_the_same_name_is_not_taken_for_dead(tmp_path: Path) -> None:
    """The numbers of all machines' own pid namespaces are alike, and names such as `localhost` or `node01` often."""
    process = PROCESSES.Process(target=time.sleep, args=(0,))
    process.start()
    process.join()
    own = Identity.of_this_process().model_copy(update={"pid": process.pid})
    assert own.is_known_dead()
    there = own.model_copy(update={"pids": os.readlink("/proc/self/ns/pid")})
    assert not there.is_known_dead()
    with Claim(Store(str(tmp_path)), there), pytest.raises(ClaimedError), Claim(Store(str(tmp_path)), ME):
        pass


def test_one_of_many_that_start_together_wins(store: Store, start: StartJobs) -> None:
    *jobs, late = start(store, 4, 9)
    first = the_winner(jobs, generation=1)
    first.signal(signal.SIGKILL)
    wait_until_lapsed(store)
    the_winner([*(each for each in jobs if each is not first), late], generation=2)


def the_winner(jobs: list[Job], generation: int) -> Job:
    """Let all jobs claim at the same time: one holds the run, and the others are told which one."""
    for each in jobs:
        each.tell()
    said = [each.says() for each in jobs]
    winner = jobs[said.index(f"holds {generation}")]
    refused = [text for text in said if text.startswith("ClaimedError") and f"pid {winner.process.pid} " in text]
    assert len(refused) == len(jobs) - 1
    return winner


def test_a_run_can_be_taken_from_a_living_job(store: Store, start: StartJobs) -> None:
    [holder] = start(store, 6, 1)
    assert holder.claims() == "holds 1"
    with Claim(store, ME, takeover=True) as claim:
        lost = holder.says()
        assert lost.startswith("ClaimLostError")
        assert str(ME) in lost
        claim.check()


@pytest.mark.parametrize("takeover", [False, True])
def test_a_job_that_wakes_up_too_late_touches_nothing(tmp_path: Path, start: StartJobs, takeover: bool) -> None:
    store = Store(str(tmp_path))
    [holder] = start(store, 6 if takeover else 2, 1)
    assert holder.claims() == "holds 1"
    holder.signal(signal.SIGSTOP)
    if not takeover:
        wait_until_lapsed(store)
    with Claim(store, ME, takeover=takeover) as claim:
        holder.signal(signal.SIGCONT)
        assert holder.says().startswith("ClaimLostError")
        claim.check()
        until(lambda: {key.partition(".")[0] for key in store.keys("claims")} == {"claims/000002"})
        assert holder.claims().startswith("ClaimedError")


def test_a_store_that_is_briefly_away_costs_nothing(s3: S3, tmp_path: Path) -> None:
    store = Store(f"s3://{s3.bucket}/{tmp_path.name}")
    with Claim(store, ME, lease_seconds=12) as claim:
        wait_for_renewal(store, now())
        s3.process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        s3.process.send_signal(signal.SIGCONT)
        wait_for_renewal(store, now())
        claim.check()


def test_a_folder_that_is_briefly_away_costs_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    with Claim(store, ME, lease_seconds=6) as claim:
        wait_for_renewal(store, now())
        os.rename(tmp_path / "run", tmp_path / "away")
        time.sleep(2.5)
        assert not (tmp_path / "run").exists()
        os.rename(tmp_path / "away", tmp_path / "run")
        wait_for_renewal(store, now())
        claim.check()


class CannotSayError(OSError):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


def test_an_error_that_cannot_be_shown_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))

    def away(*_: object) -> None:
        raise CannotSayError

    with Claim(store, ME, lease_seconds=1, patience_seconds=PATIENCE) as claim:
        with monkeypatch.context() as patch:
            patch.setattr(store, "sizes", away)
            until(lambda: claim.seconds() <= 0)
        until(lambda: claim.seconds() > 0)
        assert claim.generation == 2


def test_while_it_is_unsure_whose_run_it_is_that_is_said_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, answers = Store(str(tmp_path)), threading.Event()
    monkeypatch.setattr("flashvideo_ray.ledger.claim.SAY_SECONDS", 0.3)
    with Claim(store, ME, lease_seconds=1, patience_seconds=PATIENCE):
        monkeypatch.setattr(store, "sizes", lambda folder: answers.wait() and {})  # it stands still, and raises nothing
        try:
            until(lambda: len(caplog.records) >= 3)
        finally:
            answers.set()
            monkeypatch.undo()


def test_the_defaults_of_lease_and_patience_agree() -> None:
    lease, patience = Settings().ledger.lease_seconds, Settings().store_patience_seconds
    assert renewal_seconds(lease) <= lease / 10  # a few renewals may go wrong
    assert renewal_seconds(lease / 20) == pytest.approx(renewal_seconds(lease) / 20)  # and in short tests as many
    assert patience >= 5 * lease  # the run outlives an absence of the store that its lease does not


def until(done: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_store_that_is_away_for_longer_than_the_lease_costs_nothing(s3: S3, tmp_path: Path) -> None:
    store = Store(f"s3://{s3.bucket}/{tmp_path.name}")
    heard: list[tuple[float, str]] = []
    with Claim(store, ME, lease_seconds=2, patience_seconds=2 * PATIENCE) as claim:
        claim.report_to(lambda until, lost: heard.append((until, lost)))
        s3.process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: claim.seconds() <= 0)
            unsure = len(heard)
            time.sleep(1)
        finally:
            s3.process.send_signal(signal.SIGCONT)
        until(lambda: claim.seconds() > 0)
        assert claim.generation == 2
        assert heard[unsure][0] > heard[unsure - 1][0]
        with pytest.raises(ClaimedError), Claim(store, Identity.of_this_process()):
            pass
    assert lease(store, 2).released
    assert {lost for _, lost in heard} == {""}


def refuse_to_grow_files(holder: Job, yes: bool) -> None:
    """As a full disk does to this process: the kernel refuses each byte that it writes, and lets it read."""
    limit = 0 if yes else resource.RLIM_INFINITY
    assert holder.process.pid is not None
    resource.prlimit(holder.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def test_a_disk_that_is_full_for_longer_than_the_lease_costs_nothing(tmp_path: Path, start: StartJobs) -> None:
    store = Store(str(tmp_path))
    [holder] = start(store, 2, 1)
    assert holder.claims() == "holds 1"
    refuse_to_grow_files(holder, True)
    wait_until_lapsed(store)
    assert store.keys("claims", ".json") == ["claims/000001.json"]
    refuse_to_grow_files(holder, False)
    until(lambda: "claims/000002.lease" in store.keys("claims"))
    assert lease(store, 2).holder.pid == holder.process.pid
    assert not holder.connection.poll()  # it has not lost it


def test_a_run_that_was_taken_while_the_disk_was_full_is_left_alone(tmp_path: Path, start: StartJobs) -> None:
    store = Store(str(tmp_path))
    [holder] = start(store, 2, 1)
    assert holder.claims() == "holds 1"
    refuse_to_grow_files(holder, True)
    wait_until_lapsed(store)
    with Claim(store, ME) as claim:
        refuse_to_grow_files(holder, False)
        lost = holder.says()
        assert lost.startswith("ClaimLostError")
        assert str(ME) in lost
        assert claim.generation == 2
        assert {key.partition(".")[0] for key in store.keys("claims")} == {"claims/000002"}


def test_without_patience_a_store_that_is_away_for_a_whole_lease_costs_the_claim(s3: S3, tmp_path: Path) -> None:
    store = Store(f"s3://{s3.bucket}/{tmp_path.name}")
    with Claim(store, ME, lease_seconds=2) as claim:
        s3.process.send_signal(signal.SIGSTOP)
        try:
            assert claim.lost.wait(30)
        finally:
            s3.process.send_signal(signal.SIGCONT)
        with pytest.raises(ClaimLostError, match=r"not renewed for \d+ s"):
            claim.check()
        wait_until_lapsed(store)
        with Claim(store, Identity.of_this_process()) as successor:
            assert successor.generation == 2


def test_a_holder_whose_clock_is_behind_is_not_taken_for_dead(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    behind = now() - dt.timedelta(hours=1)
    over = threading.Event()

    def renew() -> None:
        claimed = Lease(holder=ME, nonce="a", since=behind, renewed=behind, lease_seconds=3)
        store.put("claims/000001.json", claimed.model_dump_json().encode())
        while not over.wait(0.1):
            renewed = claimed.model_copy(update={"renewed": now() - dt.timedelta(hours=1)})
            store.put("claims/000001.lease", renewed.model_dump_json().encode())

    holder = threading.Thread(target=renew)
    holder.start()
    try:
        wait_for_renewal(store, behind)
        with pytest.raises(ClaimedError, match="alpha"), Claim(store, Identity.of_this_process()):
            pass
    finally:
        over.set()
        holder.join()
    with Claim(store, Identity.of_this_process()) as claim:
        assert claim.generation == 2


def test_a_claim_that_cannot_be_read_lapses(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put("claims/000001.json", b"")  # what a machine that loses its power can leave
    with Claim(store, ME, lease_seconds=2) as claim:
        assert claim.generation == 2


def on(shard: str, store: Store, **options: Any) -> Claim:
    return Claim(store, ME, scope=scope_of(Shard.parse(shard)), **options)


def test_shards_stand_side_by_side_and_the_whole_run_waits_for_all_of_them(store: Store) -> None:
    with on("1/2", store) as one:
        with on("2/2", store) as two:
            assert (one.generation, two.generation) == (1, 1)
            assert one.at_work_beside()
            with pytest.raises(ClaimedError, match=r"its shard 1/2.*--takeover"), on("1/2", store):
                pass
            with pytest.raises(ClaimedError, match=r"its shard [12]/2\)"), Claim(store, ME):
                pass
            with pytest.raises(ClaimedError, match="the same number of shares"), on("1/3", store):
                pass
            one.check()
            two.check()
        assert not one.at_work_beside()
        with pytest.raises(ClaimedError, match="shard 1/2"), Claim(store, ME):
            pass
    with Claim(store, ME) as whole:
        with pytest.raises(ClaimedError, match="is claimed by another job") as refused, on("2/2", store):
            pass
        assert "its shard" not in str(refused.value)
        whole.check()
    with on("3/3", store):
        pass
    assert {key.rpartition("/")[2][:6] for key in store.keys("claims")} == {"000001"}  # who is refused leaves nothing


@pytest.mark.parametrize("takeover", [False, True])
def test_a_shard_that_the_whole_run_has_overtaken_touches_nothing(
    tmp_path: Path, start: StartJobs, takeover: bool
) -> None:
    """Whether it was stopped until its lease had lapsed, or is alive and the run is taken from it."""
    store = Store(str(tmp_path))
    holder, other = start(store, 6 if takeover else 2, 2)
    assert (holder.claims("1/2"), other.claims("2/2")) == ("holds 1", "holds 1")
    for each in (holder, other):
        if not takeover:
            each.signal(signal.SIGSTOP)
    if not takeover:
        time.sleep(2.5)
    with Claim(store, ME, takeover=takeover) as claim:
        for each in (holder, other):
            each.signal(signal.SIGCONT)
            assert each.says().startswith("ClaimLostError")
            assert each.claims("1/2").startswith("ClaimedError")
        claim.check()
    assert holder.claims("1/2") == "holds 3"


def test_of_shards_and_whole_runs_that_start_together_no_two_exclude_one_another(
    store: Store, start: StartJobs
) -> None:
    jobs = start(store, 20, 6)
    wanted = ["", "1/2", "2/2", "", "1/3", "1/2"]
    for each, shard in zip(jobs, wanted, strict=True):
        each.tell(shard)
    held = {shard for each, shard in zip(jobs, wanted, strict=True) if each.says().startswith("holds")}
    assert held in ({""}, {"1/2"}, {"2/2"}, {"1/2", "2/2"}, {"1/3"}, set())


def test_reports_are_written_in_turn(tmp_path: Path) -> None:
    store, settings = Store(str(tmp_path)), Settings()

    def write(name: str) -> None:
        with turn(store, settings) as held:
            before = held.get("report") if held.exists("report") else b""
            time.sleep(0.2)
            held.put("report", before + name.encode())

    with on("1/2", store):  # beside its claim, not instead of it
        threads = [threading.Thread(target=write, args=[name]) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(store.get("report").decode()) == [*"ab"]
    assert store.keys(REPORT)
