"""What a job leaves of its end."""

from __future__ import annotations

from pathlib import Path

from flashvideo_ray import Settings
from flashvideo_ray.graph.ending import Ending, exit_status
from flashvideo_ray.graph.job import RunResult
from flashvideo_ray.ledger.claim import Claim, scope_of
from flashvideo_ray.ledger.holder import Identity
from flashvideo_ray.ledger.shard import Shard
from flashvideo_ray.ledger.store import Store

ELSEWHERE = Identity(host="another", pid=1, user="ann", command="render")


def end(store: Store, shard: str | None = None) -> bool:
    """A job that found nothing to do has ended; whether that was left."""
    ending = Ending(store.url, Settings(), None if shard is None else Shard.parse(shard))
    ending.result = RunResult(store.url, {}, {"rendered": 1}, 1.0)
    ending.tell(None)
    return bool(store.keys("exit", ".json")) or store.exists("exit.json")


def test_a_job_without_work_does_not_speak_for_one_that_is_at_work(tmp_path: Path) -> None:
    """Whoever watches the run would take it for ended, and ended well."""
    store = Store(str(tmp_path))
    with Claim(store, ELSEWHERE):
        assert not end(store)
    with Claim(store, ELSEWHERE, scope=scope_of(Shard.parse("1/2"))):
        assert not end(store)
        assert not end(store, "1/2")
        assert end(store, "2/2")  # beside it, and nobody else tells of that one
    assert end(store)
    assert exit_status(store) == 0
