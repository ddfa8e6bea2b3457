"""The service on this machine, or on the cluster that `RAY_ADDRESS` names, for as long as a command runs."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import ray
from ray import serve

from flashvideo_ray.graph import cluster
from flashvideo_ray.ledger import parquet_log
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.serve import app as application
from flashvideo_ray.serve.security import LOOPBACK
from flashvideo_ray.settings import SettingsError

LOGGING = {"log_level": "WARNING", "enable_access_log": False}


def hosts(host: str, further: Sequence[str]) -> tuple[str, ...]:
    """The names to answer for: on this machine its own ones, elsewhere those that were named, or any."""
    return (*LOOPBACK, *further) if host in LOOPBACK else tuple(further)


@contextmanager
def running(
    options: application.ServeSettings,
    host: str = "127.0.0.1",
    port: int = 8000,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[str]:
    """Run the service; gives its address. Raises an InputError before anything is started.

    `say` is told what it will be busy with until then.

    Without tokens it is open to everybody who reaches it, so it must then be bound to this machine alone.
    """
    own = not os.environ.get("RAY_ADDRESS")  # on a cluster, Serve may be listening already, and to everybody
    options = options.model_copy(update={"open_to_all": own and host in LOOPBACK})
    tokens = application.load_tokens(options)
    _check_port(host, port)
    settings, recipe = application.load_run(options)
    if own:  # all share this machine: a replica that is busy is no news, and a proxy that is slow to start is not dead
        os.environ.setdefault("RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S", "1")
        os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
        os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", "60")
    cluster.connect(settings.pools)
    cluster.try_encoder(settings)
    application.open_run(options.output, settings, recipe)
    parts, size = parquet_log.extent(Store(options.output), "ledger/")
    ledger = f"reading the ledger ({parts} parts, {size / 1e6:.1f} MB) and " if parts else ""
    say(f"{options.output}: {ledger}loading the models …")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        serve.start(
            proxy_location="HeadOnly", http_options={"host": host, "port": port}, logging_config={"log_level": "ERROR"}
        )
        target = application.bind(options, settings, recipe, tokens)
        serve.run(target, name=application.NAME, route_prefix="/", logging_config=LOGGING)
        yield f"http://{host}:{port}/"
    finally:
        if own:
            serve.shutdown()
            ray.shutdown()
        else:
            serve.delete(application.NAME)


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            raise SettingsError(
                f"{host}:{port} cannot be listened on: {error.strerror}; --port names another"
            ) from None
