"""Settings and a run directory to a Serve application: the API, the scheduler, and one deployment for each stage."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydantic import Field, field_validator
from ray import serve
from ray.exceptions import TaskCancelledError
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from flashvideo_ray.graph import checks, cluster
from flashvideo_ray.graph.recipe import about, recipe_of, with_added_scorers
from flashvideo_ray.ledger import jobs, run_file
from flashvideo_ray.ledger.store import Store
from flashvideo_ray.media import provenance
from flashvideo_ray.serve.api import create_app
from flashvideo_ray.serve.scheduler import Scheduler
from flashvideo_ray.serve.security import App, Message, Receive, Scope, Send, Tokens
from flashvideo_ray.serve.service import Service
from flashvideo_ray.serve.worker import SCHEDULER, Worker
from flashvideo_ray.settings import Frozen, Pool, Positive, Settings, SettingsError, Stage

NAME = "flashvideo"
_CONNECTIONS = 1000  # requests at once in one replica of the API, streams of events among them
_STOP_SECONDS = 5.0


class ServeSettings(Frozen):
    """What `flashvideo-ray serve` and a Serve config file's `args` may say."""

    output: str = Field(description="the run: a folder or any fsspec URL")
    config: str | None = Field(None, description="a preset or a YAML file; null: the settings of the run that is there")
    set: tuple[str, ...] = Field((), description="`a.b=c` overrides of it")
    token_file: str | None = Field(None, description="null: the variable FLASHVIDEO_RAY_TOKENS")
    hosts: tuple[str, ...] = Field((), description="names the service answers for, without ports; empty: any")
    open_to_all: bool = Field(False, description="no tokens; only for a service that is bound to this machine alone")
    queue_limit: Positive = Field(1000, description="candidates that may wait")
    refine_approved: bool = Field(False, description="whether a candidate is refined as soon as it is approved")
    scale_to_zero: bool = Field(False, description="whether stages without work give their resources back")

    @field_validator("output")
    @classmethod
    def _absolute(cls, output: str) -> str:
        """Replicas may have another working directory than whoever names it."""
        return Store(output).url


@serve.ingress()
class Api:
    """The ingress. Any number of replicas may look at the same run."""

    def __init__(self, options: ServeSettings, settings: Settings, scheduler: DeploymentHandle, tokens: Tokens):
        self.tokens = tokens
        self.hosts = list(options.hosts)
        self.service = Service(options.output, settings, scheduler, options.refine_approved)

    def __serve_build_asgi_app__(self) -> App:
        """Serve asks for it once the replica is made."""
        return with_disconnects(create_app(self.service, self.tokens, self.hosts))

    def __del__(self) -> None:
        """Serve calls it when it stops the replica."""
        with suppress(Exception):
            self.service.close()


def with_disconnects(app: App) -> App:
    """The app, told of a client that left in the middle of a stream as ASGI has it.

    Serve ends its wait for the client's messages with an exception instead, which would be printed at every page that
    is closed.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def message() -> Message:
            try:
                return await receive()
            except TaskCancelledError:
                return {"type": "http.disconnect"}

        await app(scope, message, send)

    return answer


def build(args: ServeSettings) -> Application:
    """The application: `flashvideo_ray.serve.app:build` in a Serve config file.

    Starts the run if there is none. Raises an InputError of its kind where settings, run and models do not fit, and
    where neither tokens are given nor `open_to_all`.
    """
    tokens = load_tokens(args)
    settings, recipe = load_run(args)
    cluster.try_encoder(settings)
    open_run(args.output, settings, recipe)
    return bind(args, settings, recipe, tokens)


def bind(args: ServeSettings, settings: Settings, recipe: Mapping[str, Any], tokens: Tokens) -> Application:
    """The application over a run that is there. Its replicas need neither the file of the tokens nor the variable."""
    common = {
        "settings": settings,
        "output": args.output,
        "fps": recipe["fps"],
        "provenance": provenance.of_run(recipe, settings),
    }
    names: tuple[Stage, ...] = ("text", "preview", *settings.score.stages, "refine")
    handles: dict[Any, Any] = {
        name: serve.deployment(name=name, **_options(getattr(settings.pools, name), args.scale_to_zero))(Worker).bind(
            name, **common
        )
        for name in names
    }
    light: dict[str, Any] = {
        "num_replicas": 1,
        "max_ongoing_requests": _CONNECTIONS,
        "ray_actor_options": {"num_cpus": 0},
        "graceful_shutdown_timeout_s": _STOP_SECONDS,
    }
    scheduler = serve.deployment(name=SCHEDULER, **light)(Scheduler).bind(
        args.output, settings, recipe, handles, args.queue_limit, args.refine_approved
    )
    return serve.deployment(name="api", **light)(Api).bind(args, settings, scheduler, tokens)


def load_tokens(options: ServeSettings) -> Tokens:
    """The tokens. Raises SettingsError where there are none and there must be."""
    tokens = Tokens.load(options.token_file)
    if not tokens and not options.open_to_all:
        raise SettingsError(
            "this service can be reached from other machines and has no tokens: give --token-file, or the variable "
            "FLASHVIDEO_RAY_TOKENS, with lines role:name:token"
        )
    return tokens


def load_run(args: ServeSettings) -> tuple[Settings, dict[str, Any]]:
    """The settings and the recipe for the run at OUTPUT, checked. Nothing is written."""
    store = Store(args.output)
    run = run_file.read_run(store)
    if run is not None and args.config is None:
        settings = Settings.of_tree(run["settings"], args.set, where="run.json")
    else:
        settings = Settings.load(args.config, args.set)
    if settings.pools.auto:
        keys = " ".join(f"--set pools.{stage}.size=1" for stage in settings.pools.auto)
        raise SettingsError(
            f"pools.{settings.pools.auto[0]}.size: auto is chosen in the rounds of a job, and a service has none; say "
            f"how many actors there may be at most: {keys}"
        )
    settings = checks.check(with_added_scorers(settings, run))
    recipe = recipe_of(settings)
    run_file.check_recipe(store, recipe)
    return settings, recipe


def open_run(output: str, settings: Settings, recipe: Mapping[str, Any]) -> None:
    """Start the run at OUTPUT if it is not there, and record the settings if they are others than it has."""
    store = Store(output)
    run = run_file.read_run(store)
    if run is None or run["settings"] != settings.model_dump(mode="json"):
        told = about(settings, run["candidates"] if run is not None else 0)
        jobs.note(store, run_file.open_run(store, recipe, told))


def _options(pool: Pool, scale_to_zero: bool) -> dict[str, Any]:
    """A pool of the settings as options of a deployment: a replica is what a batch job calls an actor."""
    return {
        "ray_actor_options": cluster.placement(pool),
        "max_ongoing_requests": 1,
        "graceful_shutdown_timeout_s": _STOP_SECONDS,
        "autoscaling_config": {
            "min_replicas": 0 if scale_to_zero else 1,
            "max_replicas": pool.actors,
            "target_ongoing_requests": 1,
        },
    }
