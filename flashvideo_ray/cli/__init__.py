"""Commands. Thin: they read arguments, call the package and turn errors into one clear line and an exit status.

Exit status: 0 all candidates ended as rendered or rejected; 3 some failed (they are in the ledger); 2 the input or the
settings are wrong and nothing was started; 1 anything else.
"""

from __future__ import annotations

import typer

from flashvideo_ray.cli import converting, exporting, judging, keeping, looking, rendering, serving

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Two-stage video rendering on Ray."
)
for command in (
    rendering.render,
    rendering.preview,
    rendering.refine,
    judging.select,
    judging.score,
    keeping.prune,
    looking.status,
    looking.list_,
    looking.report,
    looking.plan,
    looking.doctor,
    judging.audit,
    keeping.verify,
    looking.inspect,
    keeping.compact,
    exporting.export,
    converting.convert,
    rendering.demo,
    serving.serve,
):
    app.command(command.__name__.rstrip("_"))(command)


def main() -> None:
    """Entry point of the console script."""
    app()
