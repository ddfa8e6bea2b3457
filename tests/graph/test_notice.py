"""A webhook of the test gets notice of the end, a stall, a budget and failures; one that is dead costs nothing."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import faulty
import pytest
from PIL import Image
from support import PROMPTS, free_ports, tiny_overrides, write_prompts
from tiny import save_model
from typer.testing import CliRunner

import flashvideo_ray
from flashvideo_ray import Settings
from flashvideo_ray.cli import app
from flashvideo_ray.errors import InputError
from flashvideo_ray.graph.notice import Notifier, Watch
from flashvideo_ray.graph.quota import Quota
from flashvideo_ray.graph.tracker import StageState
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import NotifySettings, Pools


class Hook:
    """What was posted; the first `refused` of them were answered 503."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.refused = 0
        self.heard: Callable[[dict[str, Any]], object] = lambda message: None  # what is done at each

    @property
    def events(self) -> list[str]:
        return [message["event"] for message in self.messages]


@pytest.fixture
def hook() -> Iterator[Hook]:
    found = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = 503 if found.refused else 200
            found.refused = max(0, found.refused - 1)
            if status == 200:
                found.messages.append(message)
                found.heard(message)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
    yield found
    server.shutdown()
    server.server_close()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_thing_that_should_wake_somebody_is_told_once(hook: Any) -> None:
    settings, clock = NotifySettings(url=hook.url, stall_seconds=600), Clock()
    notifier = Notifier(settings, "s3://b/run")
    watch = Watch(settings, notifier, clock)
    states = {"preview": StageState(actors=2, open=2, done=5)}

    def look(seconds: float, ended: dict[str, int], spent: tuple[float, str] | None = None) -> list[str]:
        clock.now = seconds
        watch.look(states, ended, spent)  # type: ignore[arg-type]
        watch.look(states, ended, spent)  # type: ignore[arg-type]
        notifier.close()
        return hook.events

    assert look(0, {"rendered": 5}) == []
    assert look(599, {"rendered": 5}) == []
    assert look(601, {"rendered": 5}) == ["stall"]
    assert hook.messages[0]["open"] == {"preview": 2}
    assert look(700, {"rendered": 9, "failed": 9}) == ["stall"]  # of few, half is chance
    assert look(800, {"rendered": 15, "failed": 9}) == ["stall", "failures"]
    spent = Quota(hours=2.0).spent(Pools.model_validate({"preview": {"num_gpus": 0.5}}), {"preview": 4 * 3600 * 0.8})
    assert look(900, {"rendered": 16, "failed": 9}, spent) == ["stall", "failures"]
    assert look(900, {"rendered": 16, "failed": 9}, (0.95, "2 gpu-hours")) == ["stall", "failures", "budget"]
    assert look(2000, {"rendered": 16, "failed": 9}) == ["stall", "failures", "budget", "stall"]
    for message in hook.messages:
        assert message["text"] == message["content"]  # where chat tools look
        assert message["text"].startswith("s3://b/run: ")
        assert message["counts"]["rendered"]


def test_what_a_budget_has_left() -> None:
    pools = Pools.model_validate({"preview": {"num_gpus": 0.5, "num_cpus": 3}})
    assert Quota(hours=2.0).spent(pools, {"preview": 2 * 3600.0}) == (0.5, "2 gpu-hours")
    assert Quota(hours=2.0, unit="cpu").spent(pools, {"preview": 3600.0}) == (1.5, "2 cpu-hours")
    assert Quota(accept=3).spent(pools, {"preview": 3600.0}) is None


def test_a_server_that_is_busy_is_asked_again_and_one_that_is_dead_is_given_up(hook: Any) -> None:
    hook.refused = 2
    notifier = Notifier(NotifySettings(url=hook.url), "run", pauses=(0.0, 0.0, 0.0))
    notifier.tell("stall", "stands still")
    notifier.close()
    assert hook.events == ["stall"]
    dead = Notifier(NotifySettings(url=f"http://127.0.0.1:{free_ports(1)[0]}"), "run", pauses=(0.0, 0.0))
    dead.tell("stall", "stands still")
    begun = time.monotonic()
    dead.close()
    assert time.monotonic() - begun < 15


def test_each_notice_of_a_job_on_a_share_of_the_prompts_names_the_share(hook: Any) -> None:
    notifier = Notifier(NotifySettings(url=hook.url), "s3://b/run", shard="3/8")
    notifier.tell("stall", "stands still")
    notifier.close()
    [message] = hook.messages
    assert (message["text"], message["shard"]) == ("s3://b/run, shard 3/8: stands still", "3/8")


def test_a_command_gets_the_notice_on_its_standard_input(tmp_path: Path) -> None:
    notifier = Notifier(NotifySettings(command=f"cat > {tmp_path / 'told'}"), "run")
    notifier.tell("end", "ended")
    notifier.close()
    assert json.loads((tmp_path / "told").read_text())["text"] == "run: ended"


@pytest.mark.usefixtures("inline")
def test_a_run_tells_of_a_stall_of_failures_of_its_budget_and_of_its_end(
    hook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its network waits for a file, which is made when the stall is told; then twenty candidates of one prompt fail."""
    faulty.known()
    monkeypatch.setenv("PATIENT", str(tmp_path / "go"))
    hook.heard = lambda message: message["event"] == "stall" and (tmp_path / "go").touch()
    model = save_model(tmp_path / "model", faults=[("preview", "raise", PROMPTS[1])])
    own = ["candidates=20", "select.keep=1", "select.rank=motion", "max_equal_failures=99"]
    told = [f"notify.url={hook.url}", "notify.stall_seconds=1", "notify.budget_share=0.001"]
    settings = Settings.load("nano", [*tiny_overrides(model), *own, *told])
    prompts, output = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:2]), str(tmp_path / "run")
    result = flashvideo_ray.render(prompts, output, settings, quota=Quota(hours=1.0, unit="cpu"))
    assert (result.exit_status, result.ended) == (3, {"rendered": 1, "rejected": 19, "failed": 20})
    assert [event for event in hook.events if event != "stall"] == ["budget", "failures", "end"]
    by_event = {message["event"]: message for message in hook.messages}
    assert by_event["stall"]["silent_seconds"] >= 1  # a busy machine stands still for so long before a call begins, too
    assert by_event["failures"]["failure_rate"] > 0.2
    assert by_event["budget"]["spent_share"] >= 0.001
    assert by_event["end"]["ended"] == result.ended


@pytest.mark.usefixtures("inline")
def test_the_end_of_a_run_is_told_and_left_in_a_file(
    hook: Any, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", hook.url)
    prompts, output = write_prompts(tmp_path / "prompts.parquet", PROMPTS[:2]), str(tmp_path / "run")
    settings = Settings.load("nano", [*tiny_overrides(tiny_model), "notify.url=env:HOOK"])
    assert flashvideo_ray.render(prompts, output, settings).ended == {"rendered": 2}
    [told] = hook.messages
    assert (told["event"], told["exit_status"], told["counts"]) == ("end", 0, {"rendered": 2})
    assert told["bill"]["lines"]
    assert told["links"]["report"] == f"{output}/report.html"
    with Image.open(io.BytesIO(Path(told["contact_sheet"]).read_bytes())) as sheet:
        assert sheet.size[0] > sheet.size[1]
    left = json.loads(Store(output).get("exit.json"))
    assert (left["exit_status"], left["ended"]) == (0, {"rendered": 2})
    # Where the seconds of each clip went, from the ledger of the same run.
    assert CliRunner().invoke(app, ["report", output, "--trace"]).exit_code == 0
    slices = [event["name"] for event in json.loads(Store(output).get("trace.json"))["traceEvents"]]
    assert slices.count("preview") == slices.count("refine") == 2
    assert hook.url not in "".join(path.read_text() for path in Path(output).glob("*.json"))

    # Nothing is left, so all that it takes is spent.
    ends = json.loads(Store(output).get("summary.json"))["forecast"]
    assert (ends["seconds_left"], ends["expected"]) == (0.0, ends["spent"])
    assert ends["spent"]["cpu_seconds"] > 0
    assert CliRunner().invoke(app, ["status", output]).exit_code == 0

    # A job that begins as soon as the run is free does not find how the one before it ended.
    [released] = Path(output, "claims").glob("*.lease")
    for name in ("exit.json", "contact-sheet.jpg"):
        assert Path(output, name).stat().st_mtime_ns <= released.stat().st_mtime_ns

    # Nobody who is told, or somebody else, may be named at any time; one who is dead costs nothing.
    dead = [f"notify.url=http://127.0.0.1:{free_ports(1)[0]}", "notify.stall_seconds=0.01"]
    more = write_prompts(tmp_path / "more.parquet", PROMPTS[:3])
    again = flashvideo_ray.render(more, output, Settings.load("nano", [*tiny_overrides(tiny_model), *dead]))
    assert (again.exit_status, again.ended) == (0, {"rendered": 1})

    # What is refused is told, too, and is no end of the run.
    with pytest.raises(InputError):
        flashvideo_ray.render(prompts, output, settings.model_copy(update={"candidates": 3}))
    assert (hook.messages[-1]["exit_status"], len(hook.messages)) == (2, 2)
    assert json.loads(Store(output).get("exit.json"))["exit_status"] == 0
    result = CliRunner().invoke(app, ["status", output, "--exit-status"])
    assert (result.exit_code, result.output.strip()) == (0, "")
    Store(output).put("exit.json", json.dumps({**left, "exit_status": 3}).encode())
    assert CliRunner().invoke(app, ["status", output, "--exit-status"]).exit_code == 3


@pytest.mark.parametrize("wrong", [{}, {"url": "http://a", "command": "b"}, {"url": "ftp://a"}])
def test_one_way_to_tell(wrong: dict[str, str]) -> None:
    with pytest.raises(InputError, match="notify"):
        Settings.of_tree({"notify": wrong})
