"""What `doctor` looks at on one machine: on the driver itself, and in a task on each node of the cluster."""

from __future__ import annotations

import datetime as dt
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, requires
from typing import Literal

from packaging.requirements import Requirement

from flashvideo_ray import engines
from flashvideo_ray.accounting import plan
from flashvideo_ray.accounting.card import Card
from flashvideo_ray.engines import completeness, weights
from flashvideo_ray.errors import InputError, in_a_line
from flashvideo_ray.graph import checks, recipe
from flashvideo_ray.ledger import run_file
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import video
from flashvideo_ray.media.credentials import Signer
from flashvideo_ray.settings import Settings, Stage
from flashvideo_ray.versions import OWN, NotInstalledError, version_of

Level = Literal["ok", "warning", "broken", "not there yet"]

SECONDS = 20.0  # for all that is looked at on one machine
_PROBE_BYTES = 2**20
_LEAST_FREE = 2**30  # bytes of a temporary folder; Ray's logs and what it spills go there
_FULL = 0.95  # of a disk: Ray spills nothing onto one that is fuller
_SOON = dt.timedelta(days=2)
_MODELS: tuple[weights.ModelStage, ...] = ("preview", "refine")


@dataclass(frozen=True)
class Finding:
    """One line: how something is, and where it is not as it should be, what mends it."""

    level: Level
    about: str
    message: str
    mend: str = ""
    where: str = "driver"


@dataclass(frozen=True)
class Asked:
    """What a machine is to be good for."""

    settings: Settings
    stages: tuple[Stage, ...]
    """Those that would run there."""
    temporary: tuple[str, ...] = ()
    """Folders of Ray's own, beside the one that the machine itself names."""
    models: tuple[weights.ModelStage, ...] = ()
    fingerprints: Mapping[str, str] | None = None
    """Of the run's weights by stage, as far as they are known."""
    versions: Mapping[str, str] | None = None
    """The driver's, where it is not the driver that is looked at."""
    output: str | None = None
    probe: tuple[str, str] | None = None
    """Where the driver has written an object, as the URL of a store and a key; it is to be read."""
    cards: float = 0.0
    """That Ray counts there."""


def examine(asked: Asked) -> list[Finding]:
    """Everything about this machine."""
    found: dict[str, Callable[[], Iterable[Finding]]] = {"versions": lambda: _versions(asked)}
    found |= {f"model of {stage}": lambda stage=stage: _model(asked, stage) for stage in asked.models}  # type: ignore[misc]
    if asked.stages:
        found["encoder"] = lambda: _encoder(asked)
        found["cards"] = lambda: cards(asked)
        found["certificate"] = lambda: _certificate(asked)
    if asked.probe is not None and asked.output is not None:
        found["store"] = lambda: _store(asked)
    found["temporary folder"] = lambda: _temporary(asked)
    return together(found)


def together(looks: Mapping[str, Callable[[], Iterable[Finding]]], seconds: float = SECONDS) -> list[Finding]:
    """What they find, in their order. One that does not come to an end, or fails, is a finding itself."""
    found: dict[str, list[Finding]] = {}

    def look(about: str, act: Callable[[], Iterable[Finding]]) -> None:
        try:
            found[about] = list(act())
        except InputError as error:
            found[about] = [Finding("broken", about, str(error))]
        except Exception as error:
            found[about] = [Finding("broken", about, f"could not be looked at: {in_a_line(error)}")]

    deadline = time.monotonic() + seconds
    threads = [threading.Thread(target=look, args=each, daemon=True) for each in looks.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    silent = f"no answer in {seconds:g} s"
    mend = "look whether its disk or its server hangs"
    return [line for about in looks for line in found.get(about, [Finding("broken", about, silent, mend)])]


def _versions(asked: Asked) -> Iterator[Finding]:
    """What is installed against what this package asks for, and on a node against the driver."""
    own = recipe.versions()
    try:
        asked_for = [Requirement(text) for text in requires(OWN) or ()]
    except PackageNotFoundError:  # a checkout, as `--working-dir` brings it, has no list
        asked_for = []
    wrong = False
    for one in asked_for:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            there = version_of(one.name)
        except NotInstalledError:
            there = None
        if there is None or not one.specifier.contains(there, prereleases=True):
            wrong = True
            is_ = "is not installed" if there is None else f"{there} is installed"
            mend = f"pip install '{one.name}{one.specifier}'"
            yield Finding("broken", "versions", f"{one.name}: {is_}, {one.specifier} is needed", mend)
    for name, theirs in (asked.versions or {}).items():
        here, there = _comparable(name, own[name]), _comparable(name, theirs)
        if here != there:
            wrong = True
            # Ray refuses such a node, or breaks; the others give other pixels in the last bits, or other columns.
            level: Level = "broken" if name in ("python", "ray", "flashvideo-ray") else "warning"
            mend = f"install {name} {theirs} here, or this one on the driver"
            yield Finding(level, "versions", f"{name} {own[name]} here, {theirs} on the driver", mend)
    if not wrong:
        yield Finding("ok", "versions", ", ".join(f"{name} {text}" for name, text in own.items()))


def _comparable(name: str, text: str) -> str:
    """Builds of one torch are for other devices, Pythons differ in their fixes."""
    return text.rpartition(".")[0] if name == "python" else text.partition("+")[0]


def _model(asked: Asked, stage: weights.ModelStage) -> Iterator[Finding]:
    own = getattr(asked.settings, stage)
    about = f"model of {stage}"
    source = engines.of(asked.settings, stage).source()
    if source is None:
        yield Finding("ok", about, f"{own.model}: it has no weights")
        return
    folder = weights.folder_here(source)
    if folder is None:
        yield Finding(
            "not there yet",
            about,
            f"{own.model} is not on this machine: it is downloaded when a job begins",
            f"hf download {own.model.partition('@')[0]}, or name a folder that the machines share",
        )
        return
    faults = completeness.faults(folder)
    mend = f"copy or convert {own.model} anew on {platform.node()}"
    yield from (Finding("broken", about, fault, mend) for fault in faults)
    if faults:
        return
    found = weights.fingerprint_at_hand(source)
    wanted = (asked.fingerprints or {}).get(stage)
    if found is None:
        yield Finding("ok", about, f"{folder} is complete; not hashed yet, which the first job does")
    elif wanted is not None and found != wanted:
        yield Finding(
            "broken",
            about,
            f"{folder} holds other weights than the run (fingerprint {found}, the run has {wanted})",
            f"bring the folder up to date on {platform.node()}, or use another OUTPUT",
        )
    else:
        yield Finding("ok", about, f"{folder} is complete, fingerprint {found}")


def _encoder(asked: Asked) -> Iterator[Finding]:
    """libx264, which previews always need; NVENC is opened on a card, by `cluster.try_encoder`."""
    own = asked.settings.video
    preset = own.encoder_preset if own.codec == "libx264" else None
    try:
        video.check_encoder("libx264", preset)
    except RuntimeError as error:
        yield Finding("broken", "encoder", str(error), "correct video.encoder_preset, or install av's own wheel anew")
        return
    yield Finding("ok", "encoder", "libx264 opens")


def cards(asked: Asked) -> Iterator[Finding]:
    """The memory of the cards that are really there against what the stages need at most."""
    needed = [stage for stage in _MODELS if stage in asked.stages and getattr(asked.settings.pools, stage).num_gpus]
    if not needed:
        return
    there = cards_here()
    if there is None:
        message = f"Ray counts {asked.cards:g} here, and there is no nvidia-smi to ask for their memory"
        yield Finding("warning", "cards", message, "install the driver's tools, or see that the container has cards")
        return
    if len(there) < asked.cards:
        message = f"Ray counts {asked.cards:g} here, the driver has {len(there)}"
        yield Finding("broken", "cards", message, "give the container its cards, or `ray start` the right --num-gpus")
    if not there:
        return
    smallest = min(gib for _, gib in there)
    names = ", ".join(dict.fromkeys(name for name, _ in there))
    for fit in plan.fits_of(asked.settings, dict.fromkeys(needed, smallest), Card.read(None)):
        if not {*fit.stage.split(" + ")} & {*needed}:
            continue
        message = f"{names}: {fit.stage} needs {fit.needed_gib:.1f} GiB ({fit.source}) of {smallest:.1f}"
        if fit.fits:
            yield Finding("ok", "cards", message)
            continue
        changes = " ".join(f"--set {key}={value}" for key, value in (fit.remedy or {}).items())
        yield Finding("broken", "cards", message, changes or "place the pool on larger cards")


def cards_here() -> list[tuple[str, float]] | None:
    """Of each card of this machine its name and the GiB that a process finds there, whoever uses them now.

    None where nothing tells. What the driver keeps for itself is left out, unless it is too old to say it.
    """
    for fields in (["name", "memory.total", "memory.reserved"], ["name", "memory.total"]):
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        try:
            told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
            lines = [line.rsplit(",", len(fields) - 1) for line in told.splitlines() if line.strip()]
            return [(name.strip(), (float(total) - sum(map(float, kept))) / 1024) for name, total, *kept in lines]
        except (OSError, subprocess.SubprocessError, ValueError):  # no such tool, no such field, `[N/A]`
            continue
    return None


def _certificate(asked: Asked) -> Iterator[Finding]:
    own = asked.settings.credentials
    if own is None or not checks.signs(asked.settings, asked.stages):
        return
    signer = Signer(own)
    left = signer.expires - dt.datetime.now(dt.UTC)
    message = f"{own.certificate} signs, until {signer.expires:%Y-%m-%d %H:%M} UTC"
    if left < _SOON:
        yield Finding("warning", "certificate", message, "renew it before a run that lasts longer")
    else:
        yield Finding("ok", "certificate", message)


def _store(asked: Asked) -> Iterator[Finding]:
    """From where the stages write: a node has an environment, and so keys, of its own."""
    assert asked.output is not None
    assert asked.probe is not None
    url, key = asked.probe
    mend = "give the node the keys and the endpoint of the store (AWS_… where `ray start` runs), or mount the folder"
    try:
        Store(url).get(key)
    except FileNotFoundError:
        yield Finding("broken", "store", f"{asked.output}: what the driver writes there is not seen here", mend)
        return
    except Exception as error:  # each file system has its own
        yield Finding("broken", "store", f"{asked.output}: cannot be read here: {in_a_line(error)}", mend)
        return
    try:
        run_file.check_writable(Store(url))
    except run_file.NoRunError as error:
        yield Finding("broken", "store", str(error), mend)
        return
    yield Finding("ok", "store", f"{asked.output} can be written")


def _temporary(asked: Asked) -> Iterator[Finding]:
    for folder in dict.fromkeys(map(os.path.realpath, (tempfile.gettempdir(), *asked.temporary))):
        if not os.path.isdir(folder):
            continue
        mend = f"make room in {folder}, or name another (TMPDIR; Ray's own: RAY_TMPDIR or `ray start --temp-dir`)"
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
        except OSError as error:
            yield Finding("broken", "temporary folder", f"{folder} takes no file of 1 MiB: {error.strerror}", mend)
            continue
        disk = shutil.disk_usage(folder)
        share = 1 - disk.free / disk.total
        message = f"{folder} has {disk.free / 2**30:,.1f} GiB free"
        if disk.free < _LEAST_FREE or share > _FULL:
            message += f" and is {share:.0%} full; Ray spills nothing onto a disk that is more than {_FULL:.0%} full"
            yield Finding("warning", "temporary folder", message, mend)
        else:
            yield Finding("ok", "temporary folder", message)


def clock() -> float:
    """Seconds by this machine's wall clock."""
    return time.time()


def at(where: str, findings: Iterable[Finding]) -> list[Finding]:
    """The findings, of another place."""
    return [replace(finding, where=where) for finding in findings]
