"""The measurements of a card as a page of docs."""

from collections.abc import Mapping
from typing import Any


def page(measured: Mapping[str, Any], purposes: Mapping[str, str]) -> str:
    """The measurements, with a line on the purpose of each section. What no card has run says so."""
    lines = [
        "# On a card",
        "",
        "Written by `python benchmarks/gpu.py results.json --page docs/gpu.md`; see there what each section does.",
        "Networks of the released sizes with random weights, in bfloat16. What no card has run is *not measured*. What",
        "the figures mean for settings: [flashvideo.md](flashvideo.md#memory-and-speed).",
    ]
    for name, purpose in purposes.items():
        own = measured.get(name)
        lines += ["", f"## {name}", "", purpose, ""]
        if own is None or own["tiny"] or own["machine"]["driver"] == "none":
            lines.append("Not measured.")
            continue
        ran_on = ", ".join(f"{key} {value}" for key, value in own["machine"].items())
        taken = f"; {own['seconds']:.0f} s" if own["seconds"] else ""
        lines += [f"{ran_on}{taken}.", "", "| | | gate | |", "| --- | --- | --- | --- |"]
        for result in own["results"]:
            value = f"{result['value']:.4g}" if isinstance(result["value"], float) else result["value"]
            passed = {True: "passed", False: "failed", None: ""}[result["passed"]]
            lines.append(f"| {result['name']} | {value} {result['unit']} | {result['gate']} | {passed} |")
        if own["broken"]:
            lines += ["", f"Not all of the section: {own['broken']}."]
    return "\n".join(lines) + "\n"
