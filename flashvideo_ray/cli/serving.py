"""The command that shows a run in the browser."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from flashvideo_ray.cli.options import ConfigOption, OutputArgument, SetOption
from flashvideo_ray.cli.outcome import console, guarded
from flashvideo_ray.graph.console import without_false_alarms


def serve(
    output: OutputArgument,
    config: ConfigOption = None,
    set_: SetOption = None,
    host: Annotated[str, typer.Option(help="The address to listen on. Other than this machine's own needs tokens.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    token_file: Annotated[str | None, typer.Option(help="Lines role:name:token; else FLASHVIDEO_RAY_TOKENS.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A further host name to answer for.")] = None,
    refine_approved: Annotated[bool, typer.Option(help="Refine a candidate as soon as it is approved.")] = False,
    queue_limit: Annotated[int, typer.Option(min=1, help="Candidates that may wait.")] = 1000,
) -> None:
    """Look at a run in the browser, submit prompts, decide, refine. Ctrl-C stops it; nothing is lost."""

    def run() -> None:
        from flashvideo_ray.serve import local
        from flashvideo_ray.serve.app import ServeSettings

        options = ServeSettings(
            output=output,
            config=config,
            set=tuple(set_ or ()),
            token_file=token_file,
            hosts=local.hosts(host, allow_host or []),
            refine_approved=refine_approved,
            queue_limit=queue_limit,
        )

        def say(text: str) -> None:
            console.print(text, markup=False, soft_wrap=True)

        with local.running(options, host, port, say) as address:
            console.print(f"{output} at {address} (Ctrl-C stops it)", markup=False, soft_wrap=True)
            threading.Event().wait()

    try:
        with without_false_alarms():
            guarded(run)
    except KeyboardInterrupt:
        console.print("Stopped. What was asked for is in the run; the same command carries on.")
