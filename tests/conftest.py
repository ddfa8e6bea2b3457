"""Real parts for the tests: a tiny model, a Ray of this machine, an S3 server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support import S3, serve_s3
from xdist.scheduler import LoadScopeScheduling

# Ray's workers and the jobs of these tests import `faulty` from here.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
# Three of pytest's processes share the cores with Ray's: threads that wait for one another cost more than they give.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A Ray starts a worker when one is needed, and not one for each CPU before.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
# As the actors of a job on a CPU have it (`graph.cluster`): a third of what small models take is page faults otherwise.
os.environ.setdefault(
    "GLIBC_TUNABLES", "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
)
# No hub is asked for anything.
os.environ["HF_HUB_OFFLINE"] = "1"


# Files that take minutes. The processes share the files: what takes longest begins first, so that all end together.
LONG = (
    "page",
    "service",
    "chaos",
    "nodes",
    "pipeline",
    "job",
    "placement",
    "resume",
    "outage",
    "selecting",
    "reselect",
    "gpu",
)


# Files whose tests share a service and its run, which take a minute to start: they stay in one process.
SERVED = ("tests/serve/test_page.py", "tests/serve/test_service.py")


class ByFile(LoadScopeScheduling):
    """The tests of a file in one process."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return SERVED[0] if file in SERVED else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first; the order within a file stays."""
    place = {f"test_{name}.py": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with `preview/` and `refine/`."""
    from tiny import save_model

    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def local_ray(s3: S3) -> None:
    """A Ray on this machine, the same for all modules until a test starts one of its own (`support.own_ray`).

    Its workers have the environment in which it was started: the S3 server's address and keys belong to it, whichever
    test asks for them first.
    """
    import ray

    from flashvideo_ray.graph.cluster import start_ray

    if not ray.is_initialized():
        start_ray(num_cpus=2)


@pytest.fixture
def no_ray() -> None:
    """No Ray that an earlier test left is used: a job of this process starts its own."""
    import ray

    ray.shutdown()


@pytest.fixture
def inline(local_ray: None) -> Iterator[None]:
    """Stages run in this process, not in actors: see `inline`."""
    from inline import stages_inline

    with stages_inline():
        yield


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A SeaweedFS server on this machine."""
    with serve_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a tiny pipeline of a family: `wan`, `ltx`, `cogvideo` or `hunyuan_video`."""
    from tiny_pipelines import FAMILIES

    folder = tmp_path_factory.mktemp("pipelines")
    return cache(lambda family: FAMILIES[family](folder / family))
