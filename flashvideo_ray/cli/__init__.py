"""Commands. Thin: they read arguments, call the package and turn errors into one clear line and an exit status.

Exit status: 0 all candidates ended as rendered or rejected; 3 some failed (they are in the ledger); 2 the input or the
settings are wrong and nothing was started; 1 anything else.
"""

from __future__ import annotations

import typer

from flashvideo_ray.cli import converting, exporting, maintenance, rendering, reporting, selecting, serving

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Two-stage video rendering on Ray."
)
for command in (
    rendering.render,
    rendering.preview,
    rendering.refine,
    selecting.select,
    selecting.score,
    maintenance.prune,
    reporting.status,
    reporting.list_,
    reporting.report,
    reporting.plan,
    reporting.doctor,
    selecting.audit,
    maintenance.verify,
    reporting.inspect,
    maintenance.compact,
    exporting.export,
    converting.convert,
    rendering.demo,
    serving.serve,
):
    app.command(command.__name__.rstrip("_"))(command)


def main() -> None:
    """Entry point of the console script."""
    app()
