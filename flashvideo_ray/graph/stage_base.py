"""What all stages share: the schema of their rows, and that an error is a value in the row."""

from __future__ import annotations

import gc
import os
import socket
import sys
import tempfile
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import ray

from flashvideo_ray.errors import in_a_line, is_out_of_memory, message_of
from flashvideo_ray.graph import logs
from flashvideo_ray.graph.events import StageEvents
from flashvideo_ray.graph.logs import say
from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.settings import Pool, Settings, Stage

_PAYLOAD = [
    pa.field("prompt_embeds", pa.large_binary()),  # safetensors: by stage, `prompt` or `negative`, and name
    pa.field("preview_latents", pa.large_binary()),  # what stage 2 takes, as `handover` packs it
    pa.field("preview_frames", pa.large_binary()),  # safetensors: `frames`, uint8
    pa.field("scores", pa.map_(pa.string(), pa.float64())),
    # How many candidates of the prompt are to be judged together, itself included; 0 where that is done.
    pa.field("group", pa.int32()),
]
PAYLOAD = tuple(field.name for field in _PAYLOAD)
BULKY = ("prompt_embeds", "preview_latents", "preview_frames")
DROPPED = dict.fromkeys(PAYLOAD)
# A process can also die outside the part of a call that has the device (out of memory while encoding, say). There it is
# not known whose fault that is, so more deaths are let pass.
_BYSTANDER_DEATHS = 4
_GATE_SECONDS = 0.3
_TELL_SECONDS = 5.0
LOAD_PAUSES = (1.0, 5.0, 15.0)  # seconds between tries of one process


def row_schema(extra: Iterable[pa.Field] = ()) -> pa.Schema:
    """The one schema of all rows of the graph, however they fare: both ledger tables' columns and what travels."""
    names = dict.fromkeys([*tables.PREVIEWS.names, *tables.CLIPS.names])
    names.pop("at")
    known = pa.unify_schemas([tables.PREVIEWS, tables.CLIPS])
    return pa.schema([*(known.field(name) for name in names), *_PAYLOAD, *extra])


def _passed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row that the job does not get to any more. It stays open, or is skipped, as the job says."""
    return {**row, **DROPPED, "group": row["group"], "status": "skipped"}


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")  # a stage that only measures pixels has not loaded it
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _card_answers() -> bool:
    """Whether the card of this process, if it has one, still does what it is asked.

    After some errors (an illegal access, a failed assertion in a kernel) all calls of the process fail, and those of
    another one do not.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except Exception:  # each kind of card has its own
        return False
    return True


def _keep_traceback(error: Exception, name: str) -> str:
    """Where on this host it is kept, in words; nothing where it cannot be."""
    with suppress(Exception):  # a disk that is full, an error that cannot be shown
        folder = Path(tempfile.gettempdir()) / "flashvideo-ray"
        folder.mkdir(exist_ok=True)
        with open(folder / name, "a", errors="backslashreplace") as log:
            log.write("".join(traceback.format_exception(error)))
        return f" (all of it in {folder / name} on {socket.gethostname()})"
    return ""


class LoadError(RuntimeError):
    """A stage cannot be loaded on a node."""


class NotWantedError(RuntimeError):
    """While a call waited for the device, the job, or its round, came to its end."""


class AttemptsError(RuntimeError):
    """A candidate killed the process of a stage too often and is not tried again."""


class TimeLimitError(RuntimeError):
    """A candidate ran into the time limit of a stage too often and is not tried again."""


def given_up(deaths: int, over_seconds: float | None) -> Exception:
    """Why a candidate on which the process died so often is not tried again; `over_seconds` where that was its time."""
    times = "once" if deaths == 1 else f"{deaths} times"
    if over_seconds is not None:
        return TimeLimitError(f"{times} over {over_seconds:g} s")
    return AttemptsError(f"the process died {times} on this candidate")


def failed(row: Mapping[str, Any], stage: Stage, error: BaseException) -> dict[str, Any]:
    """The row of a candidate that an error ended in a stage."""
    name = type(error).__name__
    return {
        **row,
        # Of the candidates of a prompt, the last to be judged carries the text for all.
        **DROPPED,
        "group": row["group"],
        "prompt_embeds": row["prompt_embeds"] if row["group"] else None,
        "status": "failed",
        "stage": stage,
        "reason": f"{stage}: {name}",
        "error_class": name,
        "error": message_of(error),
    }


def _is_an_actor() -> bool:
    """Whether this process is a stage's own: it may change what the process sees of its host."""
    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


class StageBase(ABC):
    """What all stages share: which rows are theirs, and that an error is a value in the row."""

    name: ClassVar[Stage]
    gated: ClassVar[bool] = False
    """Whether a job that has enough skips it."""
    device_name: str | None = None
    """What its calls run on, as the ledger says it."""

    def __init__(self, settings: Settings, events: StageEvents, store: Store | None = None):
        """`store` is what its calls use, if they do, to be open by then."""
        self.settings = settings
        self.events = events
        self._turn = threading.Lock()
        self._device_lock = threading.Lock()
        self._logged: set[type[Exception]] = set()
        logs.use(settings.log_format)
        with nullcontext() if store is None else store.opening():
            self._load_patiently()
        logs.use(settings.log_format)  # what was imported has its own ways until then
        events.joined(self.name)

    def load(self) -> None:  # noqa: B027
        """Load what the calls need. It may be tried again after it raised."""

    @abstractmethod
    def takes(self, row: Mapping[str, Any]) -> bool:
        """Whether the row needs this stage."""

    @abstractmethod
    def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """The columns of the row that change. Whatever it raises ends the row."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Map rows to rows, same count, same order, same schema."""
        rows = [self._guarded(row) if self.takes(row) else row for row in batch.to_pylist()]
        return pa.Table.from_pylist(rows, schema=batch.schema)

    @contextmanager
    def device(self, row: dict[str, Any]) -> Iterator[None]:
        """The part of a call that has the device to itself, within the pool's time limit.

        If the process dies in here, it dies of this row, and the row is not tried more than `max_attempts` times. The
        calls beside it are only bystanders. A process that has lost its card to an error ends itself. The row gets the
        seconds, for what becomes of it after: they are paid for. Raises NotWantedError.
        """
        with self._turn:  # marked before the device is free, so that it waits for no answer; in the order of the marks
            attempt = self.events.attempt(self.name, row["clip_id"])
            self._device_lock.acquire()
        try:
            if self.gated and self.events.admit(self.name, row["clip_id"], row["id"]) == "stop":
                raise NotWantedError
            row["attempts"] = attempt.count
            watch = threading.Timer(self._pool.time_limit_seconds, self._give_up, [row["clip_id"]])
            watch.daemon = True
            watch.start()
            try:
                if attempt.count > self.settings.max_attempts:
                    raise given_up(attempt.count - 1, self._pool.time_limit_seconds if attempt.overdue else None)
                started = time.perf_counter()
                try:
                    yield
                except Exception as error:
                    if not _card_answers():
                        self._log_error(error, row["clip_id"])
                        say(f"{self.name}: the card does nothing more for this process, which ends")
                        os._exit(1)
                    raise
                finally:
                    row[f"{self.name}_seconds"] = time.perf_counter() - started
            finally:
                watch.cancel()
        finally:
            self.events.survived(self.name, row["clip_id"])
            self._device_lock.release()

    def steps(self, row: Mapping[str, Any]) -> Callable[[int, int], None]:
        """What a model tells its steps to."""
        return lambda done, total: self.events.step(self.name, row["clip_id"], done, total)

    @property
    def _pool(self) -> Pool:
        return getattr(self.settings.pools, self.name)

    def _load_patiently(self) -> None:
        """Load, with pauses between tries. Raises LoadError when it is in vain and nobody needs this actor to wait.

        An actor whose constructor raises ends the execution that others work in, so it waits until they are done.
        """
        if not self._pool.num_gpus and _is_an_actor():
            # Ray hides the cards of a node from nobody, and what sees one takes it: others would run out of its memory.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        cause = None
        pause = self.events.starting(self.name)
        if pause is not None:
            for seconds in (pause, *LOAD_PAUSES):
                time.sleep(seconds)
                try:
                    return self.load()
                except Exception as error:
                    cause = in_a_line(error)
                    self._log_error(error, "loading")
            self.events.not_loaded(self.name, str(cause))
        while not self.events.dismissed(self.name):
            time.sleep(1.0)
        raise LoadError(f"{self.name} does not run on {socket.gethostname()}: {cause or 'this node is left out'}")

    def _give_up(self, clip_id: str) -> None:
        """End this process: a call that hangs in a kernel cannot be stopped otherwise. Ray starts another one.

        Whoever is told may hang, too: it gets a few seconds to hear of it.
        """
        try:
            teller = threading.Thread(target=self._tell_overdue, args=[clip_id], daemon=True)
            teller.start()
            teller.join(_TELL_SECONDS)
        finally:
            os._exit(1)

    def _tell_overdue(self, clip_id: str) -> None:
        self.events.overdue(self.name, clip_id)
        with logs.about(self.name, clip_id):
            say(f"{self.name} ran over {self._pool.time_limit_seconds:g} s on {clip_id}: process ends")

    def _guarded(self, row: dict[str, Any]) -> dict[str, Any]:
        with logs.about(self.name, row["clip_id"]):
            return self._called(row)

    def _called(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.gated and not self._admitted(row):
            return _passed(row)
        begin = self.events.begin(self.name, row["clip_id"])
        if begin.order == "leave":
            say(f"{self.name}: this node fails whatever it gets, and is left out: process ends")
            os._exit(1)
        if begin.order == "stop":
            return _passed(row)
        status, failure = "failed", None
        try:
            if begin.count > _BYSTANDER_DEATHS * self.settings.max_attempts:
                raise AttemptsError(f"the process died {begin.count - 1} times while this candidate was in it")
            changed = self._processed(row)
            done = {**row, **changed}  # in this order: `device` writes the attempts into the row
            status = done["status"]
            return done
        except NotWantedError:
            status = "skipped"
            return _passed(row)
        except Exception as error:
            self._log_error(error, row["clip_id"])
            there = {"device": self.device_name or row["device"], "host": socket.gethostname()}
            done = {**failed(row, self.name, error), **there}
            failure = (done["error_class"], done["error"])
            return done
        finally:
            self.events.end(self.name, row["clip_id"], status, failure)

    def _processed(self, row: dict[str, Any]) -> dict[str, Any]:
        """`process`, and once more if memory ran out: what took it may have been another call's, or gone by now."""
        try:
            return self.process(row)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            say(f"{self.name} ran out of memory on {row['clip_id']}, trying once more: {message_of(error)}")
        # Outside the block: inside, the traceback keeps the tensors of the failed try alive.
        _free_memory()
        return self.process(row)

    def _admitted(self, row: Mapping[str, Any]) -> bool:
        while (answer := self.events.admit(self.name, row["clip_id"], row["id"])) == "wait":
            time.sleep(_GATE_SECONDS)
        return answer == "go"

    def _log_error(self, error: Exception, clip_id: str) -> None:
        """One line for each failure, on the job's console; where the first of its class came from, in a file."""
        where = ""
        if type(error) not in self._logged:
            self._logged.add(type(error))
            where = _keep_traceback(error, f"{self.name}-{os.getpid()}.log")
        say(f"{self.name} failed on {clip_id}: {type(error).__name__}: {message_of(error)}{where}")
