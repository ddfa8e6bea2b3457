"""The reference is what the code says."""

from __future__ import annotations

import runpy

from support import ROOT


def test_the_reference_is_up_to_date() -> None:
    for name, made in runpy.run_path(str(ROOT / "docs" / "reference.py"))["pages"]().items():
        assert (ROOT / "docs" / name).read_text() == made, f"{name}: python docs/reference.py writes it anew"


def test_every_guide_is_reached_from_the_readme_in_two_clicks() -> None:
    readme = (ROOT / "README.md").read_text()
    linked = {path.name for path in (ROOT / "docs").glob("*.md") if f"docs/{path.name}" in readme}
    for name in list(linked):
        text = (ROOT / "docs" / name).read_text()
        linked |= {path.name for path in (ROOT / "docs").glob("*.md") if f"({path.name}" in text}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == linked
    assert len(readme.splitlines()) < 200
