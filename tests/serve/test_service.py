"""The service over real HTTP: prompts in, previews, decisions and clips out, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import guides
import psutil
import pytest
import requests
from ray import serve
from serve_run import LIMIT, PATIENCE, REJECTED, RENDERED, SIBLINGS, TOKENS, Served
from support import children

from flashvideo_ray.graph import remaining
from flashvideo_ray.graph.stage_base import row_schema
from flashvideo_ray.ledger import decisions, tables
from flashvideo_ray.ledger.claim import Claim
from flashvideo_ray.ledger.holder import Identity
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import credentials, video
from flashvideo_ray.serve import app, local

HEADER = {"X-Requested-With": "flashvideo-ray"}

FIGURES = ["circle", "square", "star"]
COLOURS = ["red", "blue", "green", "grey"]
WAYS = ["left", "right", "up", "down"]


class Client(requests.Session):
    """One person, by their token."""

    def __init__(self, address: str, token: str | None = None):
        super().__init__()
        self.address = address
        self.headers.update(HEADER | ({"Authorization": f"Bearer {token}"} if token else {}))

    def request(self, method: str | bytes, url: str | bytes, *args: Any, **more: Any) -> requests.Response:
        more.setdefault("timeout", PATIENCE)
        url = str(url) if str(url).startswith("/") else f"/api/v1/{url!s}"
        return super().request(method, self.address.rstrip("/") + url, *args, **more)

    def candidate(self, clip_id: str) -> dict[str, Any]:
        return dict(self.get(f"candidates/{clip_id}").json())

    def submit(self, *prompts: str, **more: Any) -> list[str]:
        answer = self.post("prompts", json={"prompts": [{"prompt": prompt} for prompt in prompts], **more})
        assert answer.status_code == 202, answer.text
        return [item["clip_id"] for item in answer.json()["items"]]

    def until(self, clip_ids: list[str], *statuses: str) -> list[dict[str, Any]]:
        """The candidates, as soon as all have one of the statuses."""

        def there() -> list[dict[str, Any]] | None:
            found = [self.candidate(clip_id) for clip_id in clip_ids]
            return found if all(each["status"] in statuses for each in found) else None

        return eventually(there)


def eventually(question: Callable[[], Any]) -> Any:
    """The first answer that is not empty. The service may be restarting: an error is no answer."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            answer = question()
        except (requests.RequestException, ValueError, KeyError):
            answer = None
        if answer:
            return answer
        time.sleep(0.1)
    raise TimeoutError(f"not within {PATIENCE:g} s")


def of(served: Served, role: str = "operator") -> Client:
    """A client with that role's token."""
    return Client(served.address, TOKENS[role])


# Work -----------------------------------------------------------------------------------------------------------


def test_from_a_prompt_to_a_clip_that_plays(served: Served) -> None:
    client = of(served)
    answer = client.post("prompts", json={"prompts": [{"prompt": "a red circle moves left", "seed": 3}]})
    assert answer.status_code == 202
    [item] = answer.json()["items"]
    assert answer.headers["Location"] == item["location"] == f"/api/v1/candidates/{item['clip_id']}"
    [candidate] = client.until([item["clip_id"]], "previewed")
    assert candidate["seed"] == 3
    assert candidate["scores"]["motion"] is not None
    preview = client.get(candidate["preview"]).content
    assert video.probe(preview, count=True).metadata["clip_id"] == item["clip_id"]
    assert client.get(candidate["poster"]).headers["Content-Type"] == "image/jpeg"

    decision = {"clip_id": item["clip_id"], "word": "approved", "note": "calm"}
    decided = of(served, "reviewer").post("decisions", json={"decisions": [decision]})
    [shown] = decided.json()["items"]
    assert (shown["status"], shown["decision"]["by"], shown["decision"]["note"]) == (
        "approved",
        "reviewer's name",
        "calm",
    )
    assert client.post("estimate", json={"clip_ids": [item["clip_id"]]}).json()["clips"] == 1
    assert client.post("refine", json={"clip_ids": [item["clip_id"]]}).json() == {"queued": 1, "left": 0}
    [candidate] = client.until([item["clip_id"]], "rendered")
    clip = client.get(candidate["clip"]).content
    assert video.probe(clip, count=True).frames == 9
    rows = [row for row in tables.read(served.store, "clips").to_pylist() if row["clip_id"] == item["clip_id"]]
    assert [(row["status"], row["bytes"]) for row in rows] == [("rendered", len(clip))]
    for mp4 in (preview, clip):
        signature = credentials.read(mp4, served.root)
        assert signature is not None
        assert (signature.holds, signature.trusted, signature.says["clip_id"]) == (True, True, item["clip_id"])


def test_the_same_candidate_has_the_id_that_a_batch_job_gives_it(served: Served) -> None:
    from flashvideo_ray import identity, prompts

    settings, recipe = app.load_run(served.options)
    table = prompts.checked([{"prompt": "a blue square moves up"}], base_seed=settings.seed)
    batch = identity.candidates(table, 2, settings.stage1_recipe(), recipe["fingerprints"]["preview"])
    client = of(served)
    assert client.submit("a blue square moves up", candidates=2) == batch["clip_id"].to_pylist()
    again = client.post(f"candidates/{batch['clip_id'][0]}/reseed")
    [third] = [item["clip_id"] for item in again.json()["items"]]
    first, third_shown = client.candidate(batch["clip_id"][0].as_py()), client.candidate(third)
    assert (third_shown["candidate"], third_shown["seed"]) == (2, first["seed"] + 2)
    assert third_shown["prompt_id"] == first["prompt_id"]
    client.until([*batch["clip_id"].to_pylist(), third], "previewed")


def test_decisions_are_what_the_next_batch_refine_renders(served: Served) -> None:
    client, reviewer = of(served), of(served, "reviewer")
    ids = client.submit(*(f"a grey star moves {way}" for way in WAYS[:3]))
    client.until(ids, "previewed")
    words = dict(zip(ids, ("approved", "rejected", "approved"), strict=True))
    answer = reviewer.post("decisions", json={"decisions": [{"clip_id": c, "word": w} for c, w in words.items()]})
    assert {each["clip_id"]: each["status"] for each in answer.json()["items"]} == words
    client.post("decisions", json={"decisions": [{"clip_id": ids[2], "word": "rejected"}]})  # the last one counts
    assert client.candidate(ids[2])["decision"]["by"] == "operator's name"
    settings, _ = app.load_run(served.options)
    work = remaining.next_work(served.store, None, row_schema(), settings)
    assert set(ids) & set(work.rows["clip_id"].to_pylist()) == {ids[0]}

    page = client.get("candidates", params={"q": "grey star", "status": ["approved", "rejected"]}).json()
    assert page["total"] == 3
    bulk = {"filter": {"q": "grey star", "status": "rejected"}, "word": "cleared", "expect": 1}
    assert client.post("decisions", json=bulk).status_code == 409  # they are two
    assert len(client.post("decisions", json=bulk | {"expect": 2}).json()["items"]) == 2
    assert decisions.opinions(served.store).keys() >= {ids[0]}
    assert not decisions.opinions(served.store).keys() & set(ids[1:])


def test_a_decision_that_would_not_count_is_refused(served: Served) -> None:
    client, ids = of(served), [f"{RENDERED * SIBLINGS + n:020x}" for n in range(2)]
    before = client.candidate(ids[0])
    assert before["status"] == "rendered"
    answer = client.post("decisions", json={"decisions": [{"clip_id": ids[0], "word": "rejected"}]})
    assert answer.status_code == 409
    assert ids[0] in answer.json()["detail"]
    bulk = {"filter": {"prompt_id": f"prompt-{RENDERED}"}, "word": "rejected", "expect": 0}  # none that it counts for
    assert client.post("decisions", json=bulk).json() == {"items": []}
    assert client.candidate(ids[0]) == before


def test_undo_takes_back_what_one_said_oneself_and_nothing_else(served: Served) -> None:
    ann, ben, clip_id = of(served), of(served, "reviewer"), f"{7:020x}"

    def say(who: Client, word: str, note: str | None = None) -> None:
        body = {"decisions": [{"clip_id": clip_id, "word": word, "note": note}]}
        assert who.post("decisions", json=body).status_code == 200

    def undo(who: Client, said: str, **before: Any) -> list[str]:
        step = {"clip_id": clip_id, "word": said, "before": before}
        return list(who.post("decisions/undo", json={"decisions": [step]}).json()["left"])

    def stands() -> tuple[str, str, str | None] | None:
        decision = ann.candidate(clip_id)["decision"]
        return decision and (decision["word"], decision["by"], decision["note"])

    hers = ("rejected", "operator's name", "blurred")
    say(ann, "rejected", "blurred")
    say(ben, "approved")
    assert undo(ann, "rejected", word="cleared") == [clip_id]  # his stands now
    assert stands() == ("approved", "reviewer's name", None)
    assert undo(ben, "approved", word="rejected", by=hers[1], note="not what she said") == [clip_id]
    assert undo(ben, "approved", word="rejected", by=hers[1], note=hers[2]) == []
    assert stands() == hers
    assert undo(ben, "approved", word="cleared") == [clip_id]
    assert undo(ann, "rejected", word="cleared") == []
    assert stands() is None


def test_two_people_at_once_do_not_overwrite_one_another(served: Served) -> None:
    client = of(served)
    ids = client.submit(*(f"the red star moves {way}" for way in WAYS))
    client.until(ids, "previewed")
    people = [of(served, "reviewer"), of(served)]

    def decide(number: int) -> None:
        body = {"decisions": [{"clip_id": ids[number], "word": "approved", "note": str(number)}]}
        assert people[number % 2].post("decisions", json=body).status_code == 200

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decide, range(4)))
    shown = [client.candidate(clip_id)["decision"] for clip_id in ids]
    assert [each["note"] for each in shown] == ["0", "1", "2", "3"]
    assert [each["by"] for each in shown] == ["reviewer's name", "operator's name"] * 2


def test_a_watcher_sees_the_steps(served: Served) -> None:
    client = of(served)
    seen: list[tuple[str, dict[str, Any]]] = []
    with client.get("events", stream=True) as stream:
        lines = stream.iter_lines(decode_unicode=True)
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        assert _event(lines)[1] == "hello"
        clip_ids = client.submit(*(f"a green square moves {way}" for way in WAYS), refine=True)
        rendered: set[str] = set()
        while rendered != set(clip_ids):
            number, name, data = _event(lines)
            seen.append((name, data))
            if data.get("status") == "rendered":
                rendered.add(data["clip_id"])
    for clip_id in clip_ids:
        told = [data["status"] for name, data in seen if name == "candidate" and data["clip_id"] == clip_id]
        assert told[0] == "queued"
        assert told[-1] == "rendered"
    # A candidate that is begun brings its progress along. The quickest steps fall between two questions.
    told = [data if name == "progress" else data.get("progress") for name, data in seen if data.get("clip_id")]
    steps = [each for each in told if each and each["total"]]
    assert steps
    assert all(0 <= each["done"] <= each["total"] for each in steps)
    mark, _, last = number.partition("-")
    with client.get("events", stream=True, headers={"Last-Event-ID": f"{mark}-{int(last) - 1}"}) as stream:
        lines = stream.iter_lines(decode_unicode=True)
        assert [_event(lines)[1], _event(lines)[0]] == ["hello", number]
    with client.get("events", stream=True, headers={"Last-Event-ID": "another-7"}) as stream:
        lines = stream.iter_lines(decode_unicode=True)
        assert [_event(lines)[1], _event(lines)[1]] == ["hello", "reload"]


def test_work_waits_for_a_batch_job_and_can_be_cancelled(served: Served) -> None:
    client = of(served)
    eventually(lambda: _is_free(served.store))
    with Claim(served.store, Identity.of_this_process(), lease_seconds=60):
        ids = client.submit("a grey circle over the sand", "a grey square over the sand")
        eventually(lambda: "claimed by another job" in (client.get("run").json()["waiting_for"] or ""))
        waiting = eventually(lambda: (client.candidate(ids[1])["progress"] or {}).get("queue_position") == 2)
        assert waiting
        assert client.post(f"candidates/{ids[1]}/cancel").status_code == 202
        assert client.candidate(ids[1])["status"] == "cancelled"
        assert client.post(f"candidates/{ids[1]}/cancel").status_code == 409
    client.until(ids[:1], "previewed")
    assert client.candidate(ids[1])["status"] == "cancelled"
    eventually(lambda: _is_free(served.store))  # the service gives the run back when it has nothing to do


# What dies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["preview", "refine"])
def test_a_replica_killed_in_the_middle_of_a_candidate(served: Served, stage: str) -> None:
    client = of(served)
    clip_id = _midway(client, stage)
    _kill(stage)
    [candidate] = client.until([clip_id], "rendered", "failed")
    assert candidate["status"] == "rendered", candidate["error"]
    rows = tables.read(served.store, "clips").to_pylist()
    assert [row["status"] for row in rows if row["clip_id"] == clip_id] == ["rendered"]


def test_a_service_whose_run_was_taken_writes_no_media_after_that_and_says_whose_it_is(served: Served) -> None:
    client, taker = of(served), Identity(host="elsewhere", pid=7, user="ann", command="render a b")
    clip_id = _midway(client, "preview")
    [replica] = _replicas("preview")
    replica.suspend()
    try:
        suspended = time.monotonic()
        with Claim(served.store, taker, takeover=True):
            eventually(lambda: "render a b" in (client.get("run").json()["waiting_for"] or ""))
            time.sleep(max(0.0, suspended + 5.0 - time.monotonic()))  # for so long an answer about the claim is good
            there = _media(served.store)
            replica.resume()
            # Nobody waits for its call any more; the next one gets its turn when that has come to its end.
            row = {**dict.fromkeys(row_schema().names), "clip_id": clip_id, "status": "rejected"}
            preview = serve.get_deployment_handle("preview", app.NAME).options(stream=True)
            assert [what for what, _ in preview.run.remote(row, 1)] == ["begin", "row"]
            assert _media(served.store) == there
    finally:
        replica.resume()
    client.until([clip_id], "rendered")  # the run is free again
    rows = tables.read(served.store, "clips").to_pylist()
    assert [row["status"] for row in rows if row["clip_id"] == clip_id] == ["rendered"]


@pytest.mark.long
def test_all_queued_prompts_end_though_it_is_restarted(served: Served) -> None:
    client = of(served)
    prompts = [f"a {colour} {figure} on the sand {way}" for colour in COLOURS for figure in FIGURES for way in WAYS]
    ids = []
    for number, restart in enumerate((_kill_what_has_no_model, partial(_deploy_anew, served))):
        own = client.submit(*prompts[8 * number : 8 * number + 8])
        client.until(own[:1], "previewed")
        assert any(client.candidate(clip_id)["status"] == "queued" for clip_id in own)
        restart()
        client.until(own, "previewed")
        ids += own
    previews = tables.read(served.store, "previews", ["clip_id", "status"])
    assert set(ids) <= set(previews["clip_id"].to_pylist())


# Reading --------------------------------------------------------------------------------------------------------


@pytest.fixture
def rendered(served: Served) -> dict[str, Any]:
    client = of(served)
    return dict(client.until(client.submit("a red circle on the sand", refine=True), "rendered")[0])


def test_media_come_whole_in_ranges_or_not_at_all_if_known(served: Served, rendered: dict[str, Any]) -> None:
    client, clip = of(served), rendered["clip"]
    whole = client.get(clip)
    for unit in ("items=0-9", "items="):  # a unit that it does not know is as good as not there
        assert client.get(clip, headers={"Range": unit}).status_code == 200
    assert client.get(clip, headers={"Range": "Bytes=0-9"}).status_code == 206
    size, tag = len(whole.content), whole.headers["ETag"]
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert client.head(clip).headers["Content-Length"] == str(size)
    ranges = {"0-9": (0, 10), "10-": (10, size), "-7": (size - 7, size), f"5-{10 * size}": (5, size)}
    for asked, (start, stop) in ranges.items():
        part = client.get(clip, headers={"Range": f"bytes={asked}"})
        assert part.status_code == 206
        assert part.content == whole.content[start:stop]
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
    assert client.get(clip, headers={"If-None-Match": tag}).status_code == 304
    assert client.get(clip, headers={"Range": "bytes=0-9", "If-Range": tag}).status_code == 206
    assert client.get(clip, headers={"Range": "bytes=0-9", "If-Range": '"older"'}).content == whole.content


def test_pages_carry_etags_and_go_on_where_they_ended(served: Served, rendered: dict[str, Any]) -> None:
    client = of(served)
    query = {"limit": 2, "sort": "-motion", "max_motion": 3}
    page = client.get("candidates", params=query)
    known = {"If-None-Match": page.headers["ETag"]}
    assert client.get("candidates", params=query, headers=known).status_code == 304
    seen, cursor = list(page.json()["items"]), page.json()["next"]
    while cursor:
        more = client.get("candidates", params=query | {"limit": 50, "cursor": cursor}).json()
        seen, cursor = seen + more["items"], more["next"]
    assert len({each["clip_id"] for each in seen}) == len(seen) == page.json()["total"]
    motions = [each["scores"].get("motion") for each in seen if each["scores"].get("motion") is not None]
    assert motions == sorted(motions, reverse=True)


def test_media_of_a_rejected_candidate_of_a_real_run(served: Served) -> None:
    client = of(served)
    shown = client.candidate(f"{REJECTED * SIBLINGS:020x}")
    assert shown["status"] == "rejected"
    assert (shown["clip"], shown["clip_poster"]) == (None, None)
    assert client.get(shown["poster"]).status_code == client.get(shown["preview"]).status_code == 200


def test_what_can_be_read_answers_head(served: Served, rendered: dict[str, Any]) -> None:
    client = of(served)
    for path in ("/", "/static/main.js", "me", "run", "candidates?limit=1", "openapi.json", "events", rendered["clip"]):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b""), path
    assert client.head(rendered["clip"], headers={"Range": "bytes=0-9"}).status_code == 200  # ranges are for GET


def test_what_it_is_busy_with_before_it_answers_is_said(served: Served) -> None:
    said = served.said.splitlines()[0]
    assert "4 parts" in said  # previews, clips, what was decided, and the job that began the run
    assert served.options.output in said


def test_the_description_names_every_route_once(served: Served) -> None:
    paths = requests.get(f"{served.address}api/v1/openapi.json", timeout=PATIENCE).json()["paths"]
    names = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(names) == len(set(names))
    assert {"/api/v1/prompts", "/api/v1/decisions", "/api/v1/media/{clip_id}/{name}", "/api/v1/events"} <= set(paths)


# Attacks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "candidates/..%2f..%2frun.json",
        "candidates/../../run.json",
        "media/..%2f..%2frun.json/preview.mp4",
        "media/0123456789abcdef0123/..%2f..%2frun.json",
        "media/%00/clip.mp4",
        "media/0123456789ABCDEF0123/clip.mp4",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static//etc/passwd",
    ],
)
def test_no_id_becomes_a_path(served: Served, path: str) -> None:
    client = of(served)
    url = client.address.rstrip("/") + (path if path.startswith("/") else f"/api/v1/{path}")
    prepared = client.prepare_request(requests.Request("GET", url))
    prepared.url = url  # as it is: the library would tidy the dots away
    answer = client.send(prepared, timeout=PATIENCE)
    assert answer.status_code == 404
    assert "recipe" not in answer.text


def test_a_script_in_a_prompt_stays_text(served: Served) -> None:
    client, script_ = of(served), "<script>alert(1)</script><img src=x onerror=alert(2)>"
    [clip_id] = client.submit(script_)
    answer = client.get(f"candidates/{clip_id}")
    assert answer.json()["prompt"] == script_
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = answer.headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    client.until([clip_id], "previewed")


@pytest.mark.parametrize("token", [None, "", "operator", TOKENS["operator"][:-1], TOKENS["operator"] + "0", "ü" * 20])
def test_without_a_token_that_is_known_nothing_is_told(served: Served, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}".encode()}
    paths = ("run", "candidates", "events", "media/0123456789abcdef0123/clip.mp4", "nothing")
    for path in paths if not token else paths[:1]:  # whoever shows many wrong ones waits for each answer
        answer = requests.get(f"{served.address}api/v1/{path}", headers=headers, timeout=PATIENCE)
        assert answer.status_code == 401
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    if not token:
        me = requests.get(f"{served.address}api/v1/me", headers=headers, timeout=PATIENCE).json()
        assert me == {"name": None, "role": None, "login_needed": True}


def test_roles(served: Served, rendered: dict[str, Any]) -> None:
    decision = {"decisions": [{"clip_id": f"{5:020x}", "word": "cleared"}]}
    refine = {"clip_ids": [rendered["clip_id"]]}
    statuses = {
        role: (
            of(served, role).get("run").status_code,
            of(served, role).post("decisions", json=decision).status_code,
            of(served, role).post("refine", json=refine).status_code,
        )
        for role in TOKENS
    }
    assert statuses == {"viewer": (200, 403, 403), "reviewer": (200, 200, 403), "operator": (200, 200, 202)}


def test_the_page_logs_in_with_a_cookie_that_scripts_cannot_read(served: Served) -> None:
    page = Client(served.address)
    assert page.post("session", json={"token": "wrong-0123456789abcdef"}).status_code == 401
    answer = page.post("session", json={"token": TOKENS["viewer"]})
    assert answer.status_code == 204
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKENS["viewer"] not in cookie
    assert page.get("me").json() == {"name": "viewer's name", "role": "viewer", "login_needed": False}
    until, _, signature = page.cookies["flashvideo_ray_session"].partition(".")
    forged = {"Cookie": f"flashvideo_ray_session={int(until) + 9}.{signature}"}
    assert requests.get(f"{served.address}api/v1/run", headers=forged, timeout=PATIENCE).status_code == 401
    page.delete("session")
    assert page.get("run").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Requested-With": None},
        {"X-Requested-With": "XMLHttpRequest"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_other_sites_cannot_post(served: Served, headers: dict[str, str | None]) -> None:
    answer = of(served).post("prompts", json={"prompts": [{"prompt": "a red star"}]}, headers=headers)
    assert answer.status_code == 403
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_another_host_name_is_refused(served: Served) -> None:
    assert of(served).get("run", headers={"Host": "evil.example"}).status_code == 421
    assert of(served).get("run", headers={"Host": "localhost:1"}).status_code == 200


def test_bodies_have_a_limit_whether_or_not_they_say_their_size(served: Served) -> None:
    client, big = of(served), b'{"prompts": [' + b" " * 300_000
    assert client.post("prompts", data=big).status_code == 413
    assert client.post("prompts", data=iter([big])).status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        {"prompts": []},
        {"prompts": [{"prompt": ""}]},
        {"prompts": [{"prompt": "  "}]},
        {"prompts": [{"prompt": "x" * 2001}]},
        {"prompts": [{"prompt": "a star"}] * 101},
        {"prompts": [{"prompt": "a star"}], "candidates": 17},
        {"prompts": [{"prompt": "a star", "seed": -1}]},
        {"prompts": [{"prompt": "a star", "seed": 2**63}]},
        {"prompts": [{"prompt": "a star"}], "preview": {"model": "/etc"}},
        {"prompts": [{"prompt": "a star"}, {"prompt": "a star"}]},
        [],
    ],
)
def test_what_is_not_as_expected_is_refused_and_says_why(served: Served, body: Any) -> None:
    answer = of(served).post("prompts", json=body)
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["status"] == 422
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    "query",
    [
        *("sort=nothing", "cursor=!!", "cursor=bnVsbA", "cursor=WzEsICJhIl0&sort=prompt", "limit=0", "limit=201"),
        *("min_nothing=1", "min_motion=nan", "status=x", "unknown=1", "q=a&q=b"),
    ],
)
def test_wrong_queries_are_refused(served: Served, rendered: dict[str, Any], query: str) -> None:
    assert of(served).get(f"candidates?{query}").status_code == 422


@pytest.mark.parametrize(
    "asked", ["bytes=9-0", "bytes=99999999-", "bytes=-0", "bytes=0-1,3-4", "bytes=" + "0-0," * 500, "bytes="]
)
def test_ranges_that_are_none_are_refused(served: Served, rendered: dict[str, Any], asked: str) -> None:
    answer = of(served).get(rendered["clip"], headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"].startswith("bytes */")


def test_the_guides_commands_are_answered(served: Served, rendered: dict[str, Any], tmp_path: Path) -> None:
    """Those of docs/serve.md, with the address and the token of this service, and with ids where it leaves them out."""
    commands = guides.block("docs/serve.md", "API=").replace("http://127.0.0.1:8000/", served.address)
    open_one = Client(served.address, TOKENS["viewer"]).get("candidates?status=previewed&limit=1").json()["items"][0]
    commands = commands.replace('"clip_id": "…"', f'"clip_id": "{open_one["clip_id"]}"')
    commands = commands.replace("media/…/", f"media/{rendered['clip_id']}/").replace("curl -N", "curl -N --max-time 1")
    assert "…" not in commands
    curl = 'curl() { command curl -sS --fail-with-body -H "Authorization: Bearer $TOKEN" "$@" || [ $? = 28 ]; }'
    environment = {**os.environ, "TOKEN": TOKENS["operator"]}
    script = ["bash", "-euo", "pipefail", "-c", f"{curl}\n{commands}"]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert video.decode_mp4((tmp_path / "clip.mp4").read_bytes())[0].ndim == 4


def test_a_repeated_key_is_the_same_submission(served: Served) -> None:
    client, key = of(served), {"Idempotency-Key": "once"}
    body = {"prompts": [{"prompt": "the grey circle moves"}]}
    first, again = (client.post("prompts", json=body, headers=key) for _ in range(2))
    assert first.json() == again.json()
    assert client.post("prompts", json={"prompts": [{"prompt": "a star"}]}, headers=key).status_code == 422
    [clip_id] = [item["clip_id"] for item in first.json()["items"]]
    once = {"Idempotency-Key": "reseed once"}
    seeds = [client.post(f"candidates/{clip_id}/reseed", headers=once).json()["items"] for _ in range(2)]
    assert seeds[0] == seeds[1]
    assert client.get("candidates", params={"q": "the grey circle moves"}).json()["total"] == 2
    client.until([clip_id, seeds[0][0]["clip_id"]], "previewed")


def test_of_many_quick_submissions_the_queue_takes_what_it_holds(served: Served) -> None:
    eventually(lambda: _is_free(served.store))
    with Claim(served.store, Identity.of_this_process(), lease_seconds=60):  # nothing is worked off meanwhile
        with ThreadPoolExecutor(8) as pool:
            clients = threading.local()

            def submit(number: int) -> requests.Response:
                clients.own = getattr(clients, "own", None) or of(served)
                return clients.own.post("prompts", json={"prompts": [{"prompt": "a star", "seed": number}]})

            answers = list(pool.map(submit, range(5 * LIMIT)))
        assert sorted({answer.status_code for answer in answers}) == [202, 429]
        taken = [answer.json()["items"][0]["clip_id"] for answer in answers if answer.status_code == 202]
        assert len(taken) == LIMIT
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers if answer.status_code == 429)
        client = of(served)
        assert {client.post(f"candidates/{clip_id}/cancel").status_code for clip_id in taken} == {202}
    assert not [
        row for row in tables.read(served.store, "previews", ["clip_id"])["clip_id"].to_pylist() if row in taken
    ]


def test_of_more_clips_than_there_is_room_for_the_first_are_queued_and_the_others_counted(served: Served) -> None:
    client, ids = of(served), [f"{300 * SIBLINGS + n:020x}" for n in range(LIMIT + 10)]

    def decide(word: str) -> None:
        body = {"decisions": [{"clip_id": clip_id, "word": word} for clip_id in ids]}
        assert client.post("decisions", json=body).status_code == 200

    decide("approved")
    eventually(lambda: _is_free(served.store))
    with Claim(served.store, Identity.of_this_process(), lease_seconds=60):  # nothing is worked off meanwhile
        wanted = {"filter": {"status": "approved", "q": "shot 03"}}
        assert client.post("refine", json=wanted).json() == {"queued": LIMIT, "left": 10}
        answer = client.post("refine", json=wanted)
        assert answer.status_code == 429
        assert answer.json()["detail"] == f"10 candidates; the queue has room for 0 of {LIMIT} (--queue-limit)."
        statuses = [client.post(f"candidates/{clip_id}/cancel").status_code for clip_id in ids]
        assert (statuses.count(202), statuses.count(409)) == (LIMIT, 10)
        decide("cleared")


# The command ----------------------------------------------------------------------------------------------------


def test_ctrl_c_stops_the_command_and_what_was_asked_for_stays(served: Served) -> None:
    """The last of those that share the service."""
    of(served).submit("a red star moves up and stays")
    before = served.said
    assert served.ctrl_c() == 0
    # Of the workers that other tests killed, Ray tells in its own time, in its colours.
    told = [line for line in served.said.removeprefix(before).splitlines() if not line.startswith("\x1b[")]
    assert told == ["Stopped. What was asked for is in the run; the same command carries on."]
    assert _requests(served.store)[-1]["prompt"] == "a red star moves up and stays"


def _kill_what_has_no_model() -> None:
    _kill("scheduler")
    _kill("api")


def _deploy_anew(served: Served) -> None:
    serve.delete(app.NAME)
    serve.run(app.build(served.options), name=app.NAME, route_prefix="/", logging_config=local.LOGGING)


def _requests(store: Store) -> list[dict[str, Any]]:
    from flashvideo_ray.ledger import parquet_log
    from flashvideo_ray.ledger import requests as asked

    return [row for part in parquet_log.read_all(store, asked.PREFIX).values() for row in part.to_pylist()]


def _event(lines: Iterator[str]) -> tuple[str, str, dict[str, Any]]:
    """Id, name and data of the next event."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line and fields:
            return fields["id"], fields["event"], json.loads(fields["data"])
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
    raise EOFError("the stream ended")


def _midway(client: Client, stage: str) -> str:
    """A new candidate that is in the middle of a stage; it is to be refined."""
    scheduler = serve.get_deployment_handle("scheduler", app.NAME)

    def midway() -> str | None:
        """None if it went through too fast to be seen there."""
        prompt = {"prompt": "a blue star moves slowly", "seed": time.monotonic_ns()}
        answer = client.post("prompts", json={"prompts": [prompt], "refine": True}).json()
        clip_id = str(answer["items"][0]["clip_id"])
        call: dict[str, Any] | None = {}
        while call is not None:
            call = scheduler.work.remote().result()["calls"].get(clip_id)
            if call and call["stage"] == stage and 0 < call["done"] < call["total"]:
                return clip_id
            if call is None and client.candidate(clip_id)["status"] != "rendered":
                call = {}  # between its preview and its clip
        return None

    return str(eventually(midway))


def _media(store: Store) -> dict[str, int]:
    """The sizes of all previews, latents, clips and posters."""
    return {key: size for folder in ("previews", "latents", "clips") for key, size in store.sizes(folder).items()}


def _kill(deployment: str) -> None:
    """SIGKILL to the replicas of a deployment that this test's Ray runs."""
    for process in _replicas(deployment):
        process.kill()


def _replicas(deployment: str) -> list[psutil.Process]:
    found = children(f"ServeReplica:{app.NAME}:{deployment}")
    assert found, f"no replica of {deployment}"
    return found


def _is_free(store: Store) -> bool:
    """Whether nobody holds the run."""
    leases = [json.loads(store.get(key)) for key in store.keys("claims", ".lease")]
    return bool(leases) and all(lease["released"] for lease in leases)
