"""The reference is what the code says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from guides import GUIDES
from support import ROOT


def test_the_reference_is_up_to_date() -> None:
    for name, made in runpy.run_path(str(ROOT / "docs" / "reference.py"))["pages"]().items():
        assert (ROOT / "docs" / name).read_text() == made, f"{name}: python docs/reference.py writes it anew"


def anchors(page: Path) -> set[str]:
    """Its headings as GitHub links to them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*GUIDES, ROOT / "deploy" / "README.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for file, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{page.name}: {file}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {file}#{anchor}"


def test_every_guide_is_reached_from_the_readme_in_two_clicks() -> None:
    readme = (ROOT / "README.md").read_text()
    linked = {path.name for path in (ROOT / "docs").glob("*.md") if f"docs/{path.name}" in readme}
    for name in list(linked):
        text = (ROOT / "docs" / name).read_text()
        linked |= {path.name for path in (ROOT / "docs").glob("*.md") if f"({path.name}" in text}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == linked
    assert len(readme.splitlines()) < 200
