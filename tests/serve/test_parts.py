"""What the service is made of, without a server: snapshots of the run, the queue, tokens, the files for a cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest
import yaml
from ray.exceptions import TaskCancelledError, WorkerCrashedError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ServeDeploySchema
from starlette.responses import StreamingResponse
from support import ROOT, short_lease

from flashvideo_ray.errors import Teller
from flashvideo_ray.graph import labels, remaining
from flashvideo_ray.graph.recipe import recipe_of
from flashvideo_ray.graph.stage_base import failed, row_schema
from flashvideo_ray.ledger import decisions, parquet_log, requests, tables
from flashvideo_ray.ledger.claim import Claim, ClaimLostError, ClaimUnsureError
from flashvideo_ray.ledger.decisions import Decision
from flashvideo_ray.ledger.holder import Identity
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.ledger.tables import PREVIEWS, extended
from flashvideo_ray.ledger.writer import Writer
from flashvideo_ray.serve import local
from flashvideo_ray.serve.app import ServeSettings, build, with_disconnects
from flashvideo_ray.serve.events import WATCHERS, Hub, Watched
from flashvideo_ray.serve.queue import Reply, Submission, accepted, queue
from flashvideo_ray.serve.run_writer import RunWriter
from flashvideo_ray.serve.scheduler import Scheduler
from flashvideo_ray.serve.security import Guard, Guesses, Tokens
from flashvideo_ray.serve.service import Service
from flashvideo_ray.serve.snapshot import Filter, QueryError, Snapshot
from flashvideo_ray.serve.state import RunState
from flashvideo_ray.settings import LedgerSettings, SelectSettings, Settings, SettingsError, Stage

SCHEMA = extended(PREVIEWS, [pa.field("score_motion", pa.float64())])


def clip_id(number: int) -> str:
    return f"{number:020x}"


def candidate(number: int, prompt: str = "a red star", **columns: Any) -> dict[str, Any]:
    own = {
        "clip_id": clip_id(number),
        "id": f"p{number // 4}",
        "prompt": prompt,
        "negative_prompt": None,
        "seed": number,
    }
    made = {"latents": f"latents/{clip_id(number)}.safetensors", "score_motion": float(number)}
    return {**own, "candidate": number % 4, "status": "previewed", **made, **columns}


def write_previews(store: Store, rows: list[dict[str, Any]]) -> None:
    writer = Writer(store, "previews", SCHEMA, LedgerSettings())
    for row in rows:
        writer.append(row)
    writer.flush()


def wish(store: Store, row: dict[str, Any], status: str) -> None:
    requests.write(store, [{**row, "status": status, "by": "ann"}])


def write_clip(store: Store, row: dict[str, Any], status: str) -> None:
    writer = Writer(store, "clips", tables.CLIPS, LedgerSettings())
    writer.append({**row, "status": status})
    writer.flush()


def end_what_is_decided(store: Store, settings: Settings) -> None:
    """Write what is decided without a stage 2 into the ledger, as a batch job does."""
    work = remaining.next_work(store, None, row_schema(), settings)
    Writer(store, "clips", tables.CLIPS, LedgerSettings()).write(work.decided)


def test_the_state_follows_the_run_directory(tmp_path: Path) -> None:
    store, row = Store(str(tmp_path)), candidate(1)
    state = RunState(store, Settings.load("nano", ["select.require=motion > 0.5"]))

    def status() -> str:
        return state.refresh().candidates[clip_id(1)].status

    assert state.refresh().candidates == {}
    wish(store, row, "preview")
    assert status() == "queued"
    wish(store, row, "cancelled")
    assert status() == "cancelled"
    write_previews(store, [row])
    assert status() == "previewed"
    decisions.write(store, [Decision(clip_id(1), "rejected", "ann")])
    assert status() == "rejected"
    assert state.snapshot.candidates[clip_id(1)].reason == "rejected by ann"
    decisions.write(store, [Decision(clip_id(1), "approved", "ben")])
    assert status() == "approved"
    time.sleep(0.002)  # the ledger's clock has milliseconds
    write_clip(store, row, "failed")
    assert status() == "failed"
    time.sleep(0.002)
    wish(store, row, "refine")
    assert status() == "approved"  # asked for again
    write_clip(store, row, "rendered")
    assert status() == "rendered"
    before = state.snapshot
    parquet_log.merge(store, requests.PREFIX, 1000)
    tables.compact(store)
    assert {c.clip_id: c.status for c in state.refresh().candidates.values()} == {clip_id(1): "rendered"}
    assert state.snapshot is before  # a merged part tells nothing new


def test_a_rejected_candidate_has_no_clip_s_picture(tmp_path: Path) -> None:
    store, settings = Store(str(tmp_path)), Settings.load("nano", ["select.require=motion >= 2"])
    media = {"preview": "previews/00/1.mp4", "poster": "previews/00/1.jpg", "latents": "latents/00/1.safetensors"}
    note = "denoised with guidance apart for want of memory"
    write_previews(store, [candidate(1, **media, memory_note=note)])
    end_what_is_decided(store, settings)
    [row] = tables.read(store, "clips").to_pylist()
    assert (row["status"], row["poster"]) == ("rejected", media["poster"])  # so it stands in the ledger of a real run
    shown = RunState(store, settings).refresh().candidates[clip_id(1)]
    assert (shown.status, shown.preview_poster) == ("rejected", media["poster"])
    assert (shown.clip, shown.clip_poster) == (None, None)
    assert (shown.preview_note, shown.refine_note) == (note, None)  # the ledger's row of its end has it, too


def test_the_newest_first_are_the_newest_whatever_is_decided_about_them(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    state = RunState(store, Settings())
    for number in (3, 1, 2):
        write_previews(store, [candidate(number)])
        time.sleep(0.002)  # the ledger's clock has milliseconds

    def order(sort: str) -> list[str]:
        return [each.clip_id for each in state.refresh().page(Filter.parse({}, ()), {}, sort, None, 9).items]

    assert order("-made") == [clip_id(2), clip_id(1), clip_id(3)]
    decisions.write(store, [Decision(clip_id(3), "rejected", "ann")])
    write_clip(store, candidate(1), "rendered")
    assert order("-made") == [clip_id(2), clip_id(1), clip_id(3)]
    assert order("-at")[2] == clip_id(2)  # changed last are the others


def test_who_guesses_tokens_waits_longer_and_longer() -> None:
    now = 0.0
    guesses = Guesses(lambda: now)
    waits = [guesses.wrong("192.0.2.1") for _ in range(30)]
    assert waits[:5] == [0.0] * 5  # a slip of the hand
    assert all(0 < one <= other for one, other in pairwise(waits[5:]))
    assert max(waits) == 4.0
    assert guesses.wrong("192.0.2.2") == 0.0
    now = 3600.0
    assert guesses.wrong("192.0.2.1") == 0.0


def test_no_more_watch_at_once_than_may() -> None:
    hub, statuses, leave = Hub(), [], asyncio.Event()

    async def watch() -> None:
        async def receive() -> Any:
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                await asyncio.sleep(0)  # here the others come
                statuses.append(message["status"])

        await Watched(hub)({"type": "http", "asgi": {"spec_version": "2.0"}}, receive, send)

    async def many() -> None:
        watching = [asyncio.create_task(watch()) for _ in range(WATCHERS + 3)]
        while len(statuses) < len(watching):
            await asyncio.sleep(0)
        leave.set()
        await asyncio.gather(*watching)

    asyncio.run(asyncio.wait_for(many(), timeout=60))
    assert sorted(statuses) == [200] * WATCHERS + [503] * 3
    assert hub.watchers == 0


def test_selection_is_asked_as_a_batch_refine_would_ask_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    state = RunState(store, Settings.load("nano", ["select.rank=motion", "select.keep=1"]))
    write_previews(store, [candidate(1)])
    assert state.refresh().candidates[clip_id(1)].status == "previewed"
    write_previews(store, [candidate(2)])  # a better one of the same prompt
    found = state.refresh().candidates
    assert (found[clip_id(1)].status, found[clip_id(2)].status) == ("rejected", "previewed")
    assert "not among the best 1" in (found[clip_id(1)].reason or "")


def test_a_prompt_whose_text_was_edited_has_candidates_of_its_present_text_alone(tmp_path: Path) -> None:
    store, old, new = Store(str(tmp_path)), candidate(1), candidate(2, "a blue star")
    state = RunState(store, Settings.load("nano", ["select.rank=motion", "select.keep=1"]))
    schema = extended(SCHEMA, [pa.field("score_flicker", pa.float64())])
    before = Writer(store, "previews", schema, LedgerSettings())
    before.append({**old, "score_motion": 9.0, "score_flicker": 0.5})  # with a scorer more than there is now
    before.flush()
    wish(store, old, "refine")
    assert set(state.refresh().candidates) == {clip_id(1)}
    assert state.snapshot.scores == ("motion", "flicker")
    time.sleep(0.002)
    writer = Writer(store, "candidates", tables.CANDIDATES, LedgerSettings())
    writer.append({**new, "status": "wanted"})  # a job has begun with the edited text
    writer.flush()
    assert state.refresh().candidates == {}
    time.sleep(0.002)
    write_previews(store, [new])
    assert {c.clip_id: c.status for c in state.refresh().candidates.values()} == {clip_id(2): "previewed"}
    assert {c.prompt for c in RunState(store, state.settings).refresh().prompts["p0"]} == {"a blue star"}
    assert state.snapshot.scores == ("motion",)  # nothing else to filter by
    time.sleep(0.002)
    writer.append({**old, "status": "wanted"})  # the earlier text is back
    writer.flush()
    assert {c.clip_id: c.status for c in state.refresh().candidates.values()} == {clip_id(1): "previewed"}


def test_workers_are_permitted_to_write_while_the_service_holds_the_run(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    writer = RunWriter(store, Settings.load("nano", short_lease(2)))
    assert writer.permitted()[1]
    assert asyncio.run(writer.take())
    seconds, why = writer.permitted()
    assert (0 < seconds <= 2, why) == (True, "")
    taker = Identity(host="elsewhere", pid=7, user="ann", command="render a b")
    with Claim(store, taker, takeover=True):
        deadline = time.monotonic() + 60
        while not (told := writer.permitted())[1]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert told[0] <= 0
        assert "render a b" in told[1]
        assert writer.lost()
        assert writer.permitted()[1]


def of_a_batch(store: Store, table: tables.Table, rows: list[dict[str, Any]]) -> None:
    """Rows as a batch job writes them whose prompts brought columns along."""
    licence = pa.field("licence", pa.string(), nullable=False)  # as the file of prompts may say
    url = pa.field("preview_url", pa.string())
    schema = extended({"previews": SCHEMA, "clips": tables.CLIPS}[table], [licence, url])
    writer = Writer(store, table, schema, LedgerSettings())
    for row in rows:
        writer.append({"licence": "CC0", **row})
    writer.flush()


def serve_rows(store: Store, *made: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    """Previews and clips that a service makes, one time after the other."""
    service = RunWriter(store, Settings.load("nano", short_lease(2)))

    async def work() -> None:
        assert await service.take()
        for previews, clips in made:
            for row in previews:
                service.preview(row)
            for row in clips:
                service.ended(row)
            await service.durably()
        await service.give_back()

    asyncio.run(work())


def column(store: Store, table: tables.Table, name: str) -> dict[str, Any]:
    rows = tables.read(store, table)
    return dict(zip(rows["clip_id"].to_pylist(), rows[name].to_pylist(), strict=True))


def relabelled(store: Store, job: list[dict[str, Any]]) -> pa.Table | None:
    """What a job with these candidates would be refused for."""
    names = ["clip_id", "id", "prompt", "negative_prompt", "licence"]
    fields = [pa.field(name, pa.string()) for name in names]
    rows = pa.Table.from_pylist([{"licence": "CC0", **row} for row in job], schema=pa.schema(fields))
    return labels.relabelled(rows, *(tables.read(store, each).drop_columns("preview_url") for each in labels.LABELLED))


def test_what_is_made_of_a_batch_run_s_prompt_has_what_that_brought_along(tmp_path: Path) -> None:
    """The next job with these prompts would be refused otherwise, as if they had other labels."""
    store = Store(str(tmp_path))
    of_a_batch(store, "previews", [candidate(1)])
    of_a_batch(store, "clips", [{**candidate(4), "status": "failed"}])  # no candidate of this prompt has a preview
    further, own, earlier = candidate(2), candidate(9), candidate(0, "a blue star")
    serve_rows(
        store,
        ([], [{**candidate(1), "status": "rendered"}]),
        ([further], [{**further, "status": "rendered"}]),
        ([candidate(4)], [{**candidate(4), "status": "rendered"}, {**candidate(3), "status": "failed"}]),
        ([own, earlier], []),  # of the service's own, and with the text that the prompt had before
    )
    labelled = {clip_id(number): "CC0" for number in (1, 2, 4)}
    assert column(store, "previews", "licence") == {**labelled, clip_id(9): None, clip_id(0): None}
    assert column(store, "clips", "licence") == {**labelled, clip_id(3): "CC0"}
    assert relabelled(store, [candidate(number) for number in (1, 2, 3, 4)]) is None
    assert relabelled(store, [own]) is not None


def test_candidates_of_a_prompt_that_brought_different_things_keep_their_own(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    one, other = ({**candidate(number), "preview_url": f"s3://ours/{number}.mp4"} for number in (0, 1))
    of_a_batch(store, "previews", [one, {**other, "licence": "CC-BY"}])
    made = [{**candidate(number), "status": "rendered"} for number in (0, 1, 2)]
    serve_rows(store, ([candidate(2)], made))
    urls = {clip_id(0): "s3://ours/0.mp4", clip_id(1): "s3://ours/1.mp4", clip_id(2): None}
    assert column(store, "clips", "preview_url") == column(store, "previews", "preview_url") == urls
    assert column(store, "clips", "licence") == {clip_id(0): "CC0", clip_id(1): "CC-BY", clip_id(2): None}


def test_a_prompt_that_has_another_id_now_gives_nothing_to_the_one_it_had(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    of_a_batch(store, "previews", [candidate(1)])
    rows = tables.read(store, "previews")
    tables.supersede(store, "previews", tables.with_column(rows, "id", "renamed"))
    serve_rows(store, ([candidate(2), {**candidate(3), "id": "renamed"}], []))
    assert column(store, "previews", "licence") == {clip_id(1): "CC0", clip_id(2): None, clip_id(3): "CC0"}


def test_a_row_that_waited_for_the_next_claim_is_of_when_it_was_made(tmp_path: Path) -> None:
    """What a batch job did meanwhile is newer, and its labels count."""
    store = Store(str(tmp_path))
    service = RunWriter(store, Settings.load("nano", short_lease(2)))

    async def work() -> None:
        service.ended({**candidate(1), "status": "failed"})
        service.ended({**candidate(2), "status": "rendered"})
        waiting = asyncio.create_task(service.durably())
        await asyncio.sleep(0.2)
        assert not waiting.done()  # nothing is held yet
        of_a_batch(store, "clips", [{**candidate(1), "status": "rendered"}])
        assert await service.take()
        await waiting
        await service.give_back()

    asyncio.run(work())
    assert column(store, "clips", "status") == {clip_id(1): "rendered", clip_id(2): "rendered"}
    assert column(store, "clips", "licence") == {clip_id(1): "CC0", clip_id(2): "CC0"}


def test_a_damaged_part_keeps_nothing_waiting_that_was_paid_for(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    of_a_batch(store, "previews", [candidate(1)])
    [part] = (tmp_path / "ledger").iterdir()
    part.write_bytes(part.read_bytes()[:-8])
    serve_rows(store, ([candidate(2)], [{**candidate(2), "status": "rendered"}]))
    part.unlink()
    assert [tables.read(store, each)["clip_id"].to_pylist() for each in labels.LABELLED] == [[clip_id(2)]] * 2


class Closed(Scheduler):
    """One that is awaited here."""

    def __del__(self) -> None:  # type: ignore[override]
        """Only Serve awaits the other one."""


@pytest.mark.parametrize("error", [ClaimLostError("taken"), ClaimUnsureError("not known")])
def test_what_a_worker_may_not_write_is_open_still_and_not_failed(tmp_path: Path, error: Exception) -> None:
    store, settings = Store(str(tmp_path)), Settings.load("nano")
    tries: list[str] = []

    class Text:
        """The handle of a stage whose worker hears of the claim before the scheduler does."""

        @property
        def run(self) -> Any:
            return SimpleNamespace(remote=self._answers)

        def options(self, **_: Any) -> Text:
            return self

        async def _answers(self, row: dict[str, Any], attempt: int) -> AsyncIterator[tuple[str, Any]]:
            tries.append(row["clip_id"])
            yield "row", failed(row, "text", error)

    async def serve() -> None:
        handles = cast(dict[Stage, DeploymentHandle], {"text": Text()})
        scheduler = Closed(store.url, settings, recipe_of(settings), handles, 9, False)
        [clip_id] = (await scheduler.submit(Submission("ann", ({"prompt": "a red star"},)))).clip_ids
        async with asyncio.timeout(60):
            while len(tries) < 2:
                await asyncio.sleep(0.02)
        await scheduler.close()
        assert scheduler.state.refresh().candidates[clip_id].status == "queued"

    asyncio.run(serve())


@pytest.mark.parametrize("how", ["it raises", "its process dies"])
def test_a_candidate_that_fails_after_its_preview_was_stored_has_ended(tmp_path: Path, how: str) -> None:
    store, settings = Store(str(tmp_path)), Settings.load("nano")
    tries: list[int] = []

    class Handle:
        """The handle of a stage: `score` stores previews, and `rate` fails of each."""

        def __init__(self, stage: Stage):
            self.stage = stage

        @property
        def run(self) -> Any:
            return SimpleNamespace(remote=self._answers)

        def options(self, **_: Any) -> Handle:
            return self

        async def _answers(self, row: dict[str, Any], attempt: int) -> AsyncIterator[tuple[str, Any]]:
            if self.stage != "rate":
                yield "row", {**row, "preview": "previews/00/1.mp4" if self.stage == "score" else None}
                return
            tries.append(attempt)
            if how == "its process dies":
                raise WorkerCrashedError
            yield "row", failed(row, "rate", MemoryError())

    async def serve() -> None:
        stages: tuple[Stage, ...] = ("text", "preview", "score", "rate")
        handles = cast(dict[Stage, DeploymentHandle], {stage: Handle(stage) for stage in stages})
        scheduler = Closed(store.url, settings, recipe_of(settings), handles, 9, False)
        [clip_id] = (await scheduler.submit(Submission("ann", ({"prompt": "a red star"},)))).clip_ids
        async with asyncio.timeout(60):
            while scheduler.state.snapshot.candidates[clip_id].status == "queued":
                await asyncio.sleep(0.02)
        await scheduler.close()

    asyncio.run(serve())
    [row] = tables.read(store, "clips").to_pylist()
    assert (row["status"], row["stage"]) == ("failed", "rate")
    assert tries == [*range(1, settings.max_attempts + 1 if how == "its process dies" else 2)]


def test_what_goes_wrong_again_and_again_is_told_of_with_growing_pauses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that is away, a part of the ledger that is damaged: looked at twice a second, all night."""
    tries = 0

    async def away() -> None:
        nonlocal tries
        tries += 1
        raise OSError("503")

    async def watch() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(Service._again(cast(Any, None), away, 0.001), 1.0)

    asyncio.run(watch())
    assert tries > 20
    assert 1 <= len(caplog.records) <= 2


def test_an_error_is_told_of_at_once_where_it_is_another_or_all_was_well_before() -> None:
    now, told = 0.0, []
    teller = Teller(told.append, lambda: now)
    for second in range(200):
        now = float(second)
        teller.tell(OSError("503"))
    assert 5 <= len(told) <= 10
    teller.tell(PermissionError("403"))
    teller.well()
    teller.tell(PermissionError("403"))
    assert told[-2:] == ["PermissionError: 403"] * 2


def test_the_queue_waits_for_those_that_are_compared(tmp_path: Path) -> None:
    store, select = Store(str(tmp_path)), SelectSettings(rank="motion", keep=1)
    state = RunState(store, Settings.load("nano", ["select.rank=motion", "select.keep=1"]))
    for number in (1, 2):
        wish(store, candidate(number), "refine")
    write_previews(store, [candidate(1)])
    assert queue(state.refresh(), select, False) == {"preview": [clip_id(2)], "refine": []}
    assert queue(state.snapshot, SelectSettings(), False)["refine"] == [clip_id(1)]
    write_previews(store, [candidate(2)])
    assert queue(state.refresh(), select, False) == {"preview": [], "refine": [clip_id(2)]}
    decisions.write(store, [Decision(clip_id(1), "approved", "ann")])
    assert queue(state.refresh(), select, False)["refine"] == [clip_id(1), clip_id(2)]


def test_a_preview_whose_latents_were_removed_is_not_refined(tmp_path: Path) -> None:
    store, settings = Store(str(tmp_path)), Settings.load("nano")
    write_previews(store, [candidate(1, latents=None), candidate(2)])
    decisions.write(store, [Decision(clip_id(number), "approved", "ann") for number in (1, 2)])
    wish(store, candidate(1), "refine")
    snapshot = RunState(store, settings).refresh()
    assert queue(snapshot, settings.select, True) == {"preview": [], "refine": [clip_id(2)]}
    reply, rows = asked(snapshot, Submission("ann", refine=(clip_id(2), clip_id(1))))
    assert (reply.status, rows) == (409, [])
    assert reply.detail == f"{clip_id(1)}: its latents were removed; `render` makes them anew."
    chosen = [snapshot.candidates[clip_id(number)] for number in (1, 2)]
    assert [each.is_pruned for each in chosen] == [True, False]


def test_of_more_clips_than_the_queue_has_room_for_the_first_are_taken(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_previews(store, [candidate(number) for number in range(12)])
    state = RunState(store, Settings.load("nano"))
    all_of_them = Submission("ann", refine=tuple(clip_id(number) for number in range(12)))
    reply, rows = asked(state.refresh(), all_of_them, room=10)
    assert (reply.status, len(reply.clip_ids), reply.left) == (202, 10, 2)
    assert [row["clip_id"] for row in rows] == reply.clip_ids
    requests.write(store, rows)
    reply, _ = asked(state.refresh(), all_of_them, room=0)
    assert (reply.status, reply.detail) == (
        429,
        "2 candidates; the queue has room for 0 of 10 (--queue-limit).",
    )
    requests.write(store, asked(state.snapshot, all_of_them, room=5)[1])
    reply, rows = asked(state.refresh(), all_of_them, room=-3)  # they wait already: nothing is added
    assert (reply.status, len(reply.clip_ids), reply.left, rows) == (202, 12, 0, [])


def test_what_the_queue_has_no_room_for_is_refused_with_numbers(tmp_path: Path) -> None:
    state = RunState(Store(str(tmp_path)), Settings.load("nano"))
    prompts = tuple({"prompt": f"a red star {number}"} for number in range(3))
    reply, rows = asked(state.refresh(), Submission("ann", prompts, candidates=2), room=4)
    assert (reply.status, reply.retry_after, rows) == (429, 7, [])
    assert reply.detail == "6 candidates; the queue has room for 4 of 10 (--queue-limit)."


def asked(snapshot: Snapshot, submission: Submission, room: int = 10) -> tuple[Reply, list[dict[str, Any]]]:
    """The answer of a queue of ten."""
    settings = Settings.load("nano")
    return accepted(submission, snapshot, settings, recipe_of(settings), room, 10, 7)


def test_ten_thousand_candidates_are_filtered_sorted_and_paged(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    prompts = ("a red star", "A Blue Square", "a green circle")
    write_previews(
        store,
        [
            candidate(n, prompts[n % 3], id=f"p{n % 3}", score_motion=None if n % 10 == 0 else float(n % 1000))
            for n in range(10_000)
        ],
    )
    snapshot = RunState(store, Settings()).refresh()

    def pages(wanted: Filter, sort: str, limit: int = 200) -> list[str]:
        seen, cursor = [], None
        while True:
            page = snapshot.page(wanted, {}, sort, cursor, limit)
            seen += [each.clip_id for each in page.items]
            cursor = page.next
            if cursor is None:
                assert page.total == len(seen) == len(set(seen))
                return seen

    everything = Filter.parse({}, snapshot.scores)
    for sort in ("made", "-made", "at", "-at", "motion", "-motion", "prompt", "-prompt", "rank"):
        assert len(pages(everything, sort)) == 10_000
    falling = [snapshot.candidates[each].scores["motion"] for each in pages(everything, "-motion")]
    known = [value for value in falling if value is not None]
    assert known == sorted(known, reverse=True)
    assert falling[len(known) :] == [None] * 1000  # those without one come last
    wanted = Filter.parse({"q": "blue", "min_motion": "990"}, snapshot.scores)
    assert {snapshot.candidates[each].prompt for each in pages(wanted, "motion", limit=7)} == {"A Blue Square"}
    assert len(pages(wanted, "motion")) == sum(n % 3 == 1 and n % 1000 >= 990 and n % 10 > 0 for n in range(10_000))
    assert (
        snapshot.page(
            Filter.parse({"status": "previewing"}, snapshot.scores), {clip_id(7): "previewing"}, "at", None, 5
        ).total
        == 1
    )
    with pytest.raises(QueryError, match="there is no such filter"):
        Filter.parse({"min_beauty": "1"}, snapshot.scores)


def test_a_page_goes_on_though_others_came_meanwhile(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    state = RunState(store, Settings())
    write_previews(store, [candidate(n) for n in range(0, 20, 2)])
    everything = Filter.parse({}, ())
    first = state.refresh().page(everything, {}, "motion", None, 5)
    write_previews(store, [candidate(n) for n in range(1, 20, 2)])
    second = state.refresh().page(everything, {}, "motion", first.next, 100)
    assert [each.scores["motion"] for each in first.items] == [0, 2, 4, 6, 8]
    assert [each.scores["motion"] for each in second.items] == [*range(9, 20)]


@pytest.mark.parametrize(
    "line", ["operator:ann:short", "king:ann:0123456789abcdef", "operator::0123456789abcdef", "nonsense"]
)
def test_tokens_that_are_none_are_refused_without_being_shown(tmp_path: Path, line: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"viewer:ben:0123456789abcdef\n{line}\n")
    with pytest.raises(SettingsError, match="line 2: expected role:name:token") as caught:
        Tokens.load(str(path))
    assert line not in str(caught.value)


def test_sessions_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens.load(None, {"FLASHVIDEO_RAY_TOKENS": "viewer:ben:0123456789abcdef;operator:ann:fedcba9876543210"})
    session = tokens.session("fedcba9876543210")
    caller = tokens.of_session(session)
    assert caller is not None
    assert (caller.name, caller.role) == ("ann", "operator")
    assert Tokens.load(None, {"FLASHVIDEO_RAY_TOKENS": "viewer:ben:0123456789abcdef"}).of_session(session) is None
    later = time.time() + 13 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    assert tokens.of_session(session) is None


def test_bound_to_other_machines_it_does_not_start_without_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLASHVIDEO_RAY_TOKENS", raising=False)
    options = ServeSettings(output=str(tmp_path / "run"))
    with pytest.raises(SettingsError, match="no tokens"), local.running(options, "0.0.0.0", 8000):
        pass
    with pytest.raises(SettingsError, match="no tokens"):
        build(options)
    assert not (tmp_path / "run").exists()


def test_a_service_takes_numbers_for_sizes(tmp_path: Path) -> None:
    """Between rounds of a job sizes may change, and a service has none."""
    options = ServeSettings(output=str(tmp_path / "run"), config="nano", set=["pools.refine.size=auto"])
    with pytest.raises(SettingsError, match=r"--set pools\.refine\.size=1"):
        build(options.model_copy(update={"open_to_all": True}))
    assert not (tmp_path / "run").exists()


def test_without_tokens_whoever_reaches_it_is_an_operator_with_a_name() -> None:
    async def who(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["caller"])

    async def nothing(message: Any = None) -> None: ...

    seen: list[Any] = []
    asyncio.run(
        Guard(who, Tokens.load(None, {}))(  # type: ignore[arg-type]
            {"type": "http", "method": "GET", "path": "/api/v1/me", "headers": []}, nothing, nothing
        )
    )
    assert (seen[0].role, bool(seen[0].name)) == ("operator", True)


def test_a_page_that_is_closed_ends_its_stream_and_nothing_else() -> None:
    async def endless() -> Any:
        while True:
            yield b"event"
            await asyncio.sleep(0.01)

    async def gone() -> Any:
        raise TaskCancelledError  # what Serve says when a client leaves

    async def send(message: Any) -> None: ...

    async def request() -> None:
        scope = {"type": "http", "asgi": {"spec_version": "2.0"}}
        await with_disconnects(StreamingResponse(endless()))(scope, gone, send)

    asyncio.run(asyncio.wait_for(request(), timeout=60))


def test_the_files_for_a_cluster_fit_ray_s_schema() -> None:
    service = yaml.safe_load((ROOT / "deploy/rayservice.yaml").read_text())
    for config in (
        yaml.safe_load((ROOT / "deploy/serve.yaml").read_text()),
        yaml.safe_load(service["spec"]["serveConfigV2"]),
    ):
        [application] = ServeDeploySchema.model_validate(config).applications
        assert application.import_path == "flashvideo_ray.serve.app:build"
        options = ServeSettings.model_validate(application.args)
        settings = Settings.load(options.config, options.set)
        groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        tiers = {group["labels"]["gpu-tier"] for group in groups}
        assert {settings.pools.preview.labels["gpu-tier"], settings.pools.refine.labels["gpu-tier"]} == tiers


def test_a_clip_is_quoted_at_the_price_of_the_card_it_would_be_made_on() -> None:
    """`L4` is a part of `L40S`, and another card."""
    prices = "prices.devices={L4: {on_demand: 1.0}, L40S: {on_demand: 2.0}}"
    quoting = object.__new__(Service)  # only what an estimate needs
    quoting.settings = Settings.load(None, [prices, "pools.refine.num_gpus=1"])
    seconds = {"preview": {}, "refine": {"NVIDIA L40S": (1, 3600.0)}}
    snapshot = SimpleNamespace(seconds=seconds, total=lambda stage: 3600.0, mean=lambda stage: 3600.0)
    quoting.state = cast(Any, SimpleNamespace(snapshot=snapshot))
    chosen = [SimpleNamespace(clip=None, is_pruned=False)] * 3 + [SimpleNamespace(clip=None, is_pruned=True)]
    found = quoting.estimate(cast(Any, chosen))
    assert (found["clips"], found["money"], found["removed"]) == (3, 6.0, 1)
