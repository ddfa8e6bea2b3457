"""How a command ends: one clear line and an exit status; and what a job has done."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from flashvideo_ray.accounting.terminal import duration
from flashvideo_ray.errors import InputError, JobError, in_a_line
from flashvideo_ray.graph.console import without_false_alarms
from flashvideo_ray.ledger.claim import ClaimLostError

console = Console()


def run_job(job: Callable[[], Any]) -> int:
    """Run a job, print what it did and return its exit status."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_time=False, show_path=False)],
    )
    try:
        with without_false_alarms():
            result = job()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ClaimLostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except JobError as error:
        print(f"error: {error}\nWhat is done is in the ledger; the same command carries on.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. What is done is in the ledger; the same command carries on.", file=sys.stderr)
        return 1
    except Exception as error:
        print(f"error: {in_a_line(error)}\n{_log_of(error)}", file=sys.stderr)
        return 1
    if not result.total:
        console.print("Nothing to do: none of these prompts is left for this job.")
        return 0
    if not result.ended and not result.without_latents:
        console.print("Nothing to do: every candidate of these prompts has ended before.")
        if result.total.get("failed"):
            console.print(f"{result.total['failed']} of them failed; --retry failed takes them up again.")
    if result.without_latents:
        console.print(
            f"{result.without_latents:,} candidates are wanted whose latents were removed: "
            f"`flashvideo-ray render PROMPTS {result.output}` makes their previews anew and renders them.",
            markup=False,
            soft_wrap=True,
        )
    print_result(result)
    for fault in result.left_out:
        print(f"left out: {fault}", file=sys.stderr)
    if result.stopped is not None:
        print(f"stopped: {result.stopped}\nWhat had not begun is open; the same command carries on.", file=sys.stderr)
    return result.exit_status


def guarded(work: Callable[[], Any]) -> Any:
    """Wrong input and settings end in one message and status 2; a traceback is for what nobody expected."""
    try:
        return work()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except (ClaimLostError, JobError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def print_result(result: Any) -> None:
    """The job's last lines: what became of the candidates, what each stage took, where to look."""
    from flashvideo_ray.accounting import terminal
    from flashvideo_ray.ledger.store import Store

    summary = json.loads(Store(result.output).get("summary.json"))
    console.print(f"{result.output} after {duration(result.seconds)}", markup=False, soft_wrap=True)
    table = Table("", "this job", "whole run")
    for name in ("rendered", "rejected", "failed", "skipped", "previewed", "approved"):
        if name in result.ended or name in result.total:
            table.add_row(name, str(result.ended.get(name, 0)), str(result.total.get(name, 0)))
    console.print(table)
    console.print(terminal.stages_table(summary))
    terminal.print_lines(console, terminal.bill_lines(summary["bill"]))
    console.print(f"Look at {result.output}/report.html", markup=False, soft_wrap=True)


def _log_of(error: Exception) -> str:
    """Where to read all of it; or all of it, where it cannot be stored."""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="flashvideo-ray-", suffix=".log", delete=False) as log:
            log.write(text)
    except OSError:
        return text
    return f"All of it is in {log.name}. What is done is in the ledger; the same command carries on."
