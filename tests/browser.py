"""A real browser for tests: whichever Chromium this machine has."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """The path of a Chromium: what the variable CHROMIUM names, or one on PATH."""
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium; skips the test, and says so, where there is none."""
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium on this machine: install one (apt-get install chromium) or name it in CHROMIUM")
    with sync_playwright() as playwright:
        # A container has no user namespace for the sandbox, and little /dev/shm. Only the test's own pages are opened.
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()
