"""The service as a new user meets it: seconds to the first preview and clip, and the pictures of the README.

    python benchmarks/serve_pictures.py [--pictures docs/images] [--config nano]

Starts `flashvideo-ray serve` on a new folder, drives the page in a Chromium (on PATH) from a prompt to a preview, an
approval and a clip, takes pictures of what is seen on the way, and stops the service. Then it runs `flashvideo-ray
refine` and says whether it rendered what was approved in the page, and nothing else. Needs the extra `dev`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Locator, Page, Route, expect, sync_playwright

from flashvideo_ray.ledger import tables
from flashvideo_ray.ledger.store import Store

FIRST = "A large striped red star slides left on a navy background."
OTHERS = [
    "A huge checkered green cross swells up and comes closer over a cream backdrop.",
    "A small dotted violet square moves up in front of a mint wall.",
    "A large plain blue triangle glides to the right on a pink background.",
]
SIZE = {"width": 1024, "height": 640}
PATIENCE = 600_000  # milliseconds
COMMAND = str(Path(sys.executable).parent / "flashvideo-ray")
WORKING = """() => [...document.querySelectorAll('.card progress')].some((bar) =>
    bar.max > 1 && bar.value > bar.max / 4 && bar.getBoundingClientRect().bottom < innerHeight)"""
NOT_STORED = {"status": 503, "title": "Service Unavailable", "detail": "The store does not answer."}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=Path("docs/images"))
    parser.add_argument("--config", default="nano")
    args = parser.parse_args()
    args.pictures.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=PATIENCE)
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "demo")
        with serving(run, args.config) as address, sync_playwright() as playwright:
            path = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
            light, dark, phone = (
                browser.new_context(base_url=address, **options)
                for options in (
                    {"viewport": SIZE},
                    {"viewport": SIZE, "color_scheme": "dark"},
                    {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
                )
            )
            page = light.new_page()
            page.set_default_timeout(PATIENCE)
            page.goto("/")
            expect(page.get_by_role("heading", name="No previews yet")).to_be_visible()
            page.screenshot(path=args.pictures / "serve-empty.png")
            first_clip(page, args.pictures)
            submit(page, OTHERS, 4)
            page.goto("/")
            expect(page.locator("#result-count")).to_have_text(f"{1 + 4 * len(OTHERS)}\u00a0candidates")
            while page.request.get("/api/v1/candidates?status=previewed").json()["total"] < 4 * len(OTHERS) - 3:
                page.wait_for_timeout(200)
            page.goto("/?q=blue+triangle")
            expect(page.locator("#live")).to_have_text("live")
            page.wait_for_function(WORKING)
            page.screenshot(path=args.pictures / "serve-working.png")
            while page.request.get("/api/v1/candidates?status=previewed").json()["total"] < 4 * len(OTHERS):
                page.wait_for_timeout(500)
            page.goto("/")
            approved = decide(page)
            page.goto("/?sort=-motion")
            expect(page.locator(".card").first).to_be_visible()
            page.wait_for_timeout(2000)
            page.screenshot(path=args.pictures / "serve-review.png")
            error(dark.new_page(), args.pictures)
            small = phone.new_page()
            small.goto("/")
            expect(small.locator(".card").first).to_be_visible()
            small.wait_for_timeout(2000)
            small.screenshot(path=args.pictures / "serve-phone.png")
            reject_the_rest(page)
            browser.close()
        before = rendered(run)
        subprocess.run([COMMAND, "refine", run], check=True, capture_output=True)
        new = rendered(run) - before
        print(f"refine rendered {len(new)} clips; approved in the page: {len(approved)}; the same: {new == approved}")


@contextmanager
def serving(run: str, config: str) -> Iterator[str]:
    """The command, as a person starts it, until Ctrl-C."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.monotonic()
    command = [COMMAND, "serve", run, "-c", config, "--port", str(port), "--set", "select.require=motion >= 0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = f"http://127.0.0.1:{port}/"
            if not any(address in line for line in process.stdout):
                raise RuntimeError("the service did not start")
            print(f"page after {time.monotonic() - began:.0f} s")
            yield address
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)


def submit(page: Page, prompts: list[str], count: int) -> None:
    """The form, filled in and sent."""
    page.get_by_role("button", name="New prompt").first.click()
    page.get_by_label(re.compile("^Prompt")).fill("\n".join(prompts))
    page.locator("#count").fill(str(count))
    page.get_by_role("button", name=re.compile("^Make preview")).click()


def first_clip(page: Page, pictures: Path) -> None:
    """One prompt, from the form to a clip that plays beside its preview."""
    began = time.monotonic()
    submit(page, [FIRST], 1)
    card = page.locator(".card").first
    badge(card, "To review")
    card.hover()
    playing(page, card.locator("video"))
    print(f"prompt to a preview that plays: {time.monotonic() - began:.0f} s")
    card.focus()
    page.keyboard.press("a")
    badge(card, "Approved")
    began = time.monotonic()
    page.get_by_role("button", name=re.compile("Render 1.approved")).click()
    page.locator("#confirm-yes").click()
    badge(card, "Rendered")
    card.focus()
    page.keyboard.press("Enter")
    playing(page, page.locator("#stage video.leader"))
    print(f"order to a clip that plays: {time.monotonic() - began:.0f} s")
    page.wait_for_timeout(1500)
    page.screenshot(path=pictures / "serve-compare.png")
    page.keyboard.press("Escape")


def decide(page: Page) -> set[str]:
    """Approve two and reject one of the candidates to review; the ids of those approved."""
    approved = set()
    for key in ("a", "r", "a"):
        card = page.locator(".card", has=page.locator(".badge", has_text="To review")).first
        if key == "a":
            approved.add(str(card.get_attribute("data-id")))
        card.focus()
        page.keyboard.press(key)
        page.wait_for_timeout(1500)
    return approved


def reject_the_rest(page: Page) -> None:
    """One word for all that are still to be reviewed."""
    page.goto("/?status=review")
    page.locator("#bulk-reject").click()
    page.locator("#confirm-yes").click()
    expect(page.get_by_role("dialog")).to_be_hidden()


def error(page: Page, pictures: Path) -> None:
    """A decision that the store did not take."""

    def fail(route: Route) -> None:
        route.fulfill(status=503, content_type="application/problem+json", body=json.dumps(NOT_STORED))

    page.route("**/api/v1/decisions", fail)
    page.goto("/?status=review")
    page.locator(".card").first.focus()
    page.keyboard.press("a")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    page.wait_for_timeout(1000)
    page.screenshot(path=pictures / "serve-error.png")


def badge(card: Locator, word: str) -> None:
    """Wait until the card says so."""
    expect(card.locator(".badge")).to_have_text(word)


def playing(page: Page, video: Locator) -> None:
    """Wait until the video plays."""
    video.wait_for(state="attached")
    page.wait_for_function("v => v.readyState >= 3 && v.currentTime > 0 && !v.paused", arg=video.element_handle())


def rendered(run: str) -> set[str]:
    """The ids of the clips that there are."""
    clips = tables.read(Store(run), "clips", ["clip_id", "status"]).to_pylist()
    return {row["clip_id"] for row in clips if row["status"] == "rendered"}


if __name__ == "__main__":
    main()
