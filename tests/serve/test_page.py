"""The review page in a real Chromium, over a real service whose run holds ten thousand candidates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import chromium
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Response, Route, expect
from serve_run import HOSTILE_TEXT, LOST, MANY, NOTES, REJECTED, RENDERED, SIBLINGS, TOKENS, Served

from flashvideo_ray.nano import world
from flashvideo_ray.prompts import visible

pytestmark = pytest.mark.timeout(900)

HEADER = {"X-Requested-With": "flashvideo-ray"}
PATIENCE = 120_000  # milliseconds; a busy machine needs them
expect.set_options(timeout=PATIENCE)
IN_STEP = """() => {
    const [one, other] = document.querySelectorAll('#stage video');
    return Math.abs(one.currentTime - other.currentTime) < 0.2;
}"""
SEEN = "n => [...document.querySelectorAll('.card img')].filter((e) => e.naturalWidth > 0).length === n"
SMALL_TARGETS = """[...document.querySelectorAll('button, select, input, summary')]
    .filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 44).map((e) => e.outerHTML)"""
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def open_page(browser: Browser, served: Served) -> Iterator[Open]:
    """Opens the page as somebody; whatever it complains of, or the browser about it, fails the test."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def opened(path: str = "", role: str | None = "operator", **options: Any) -> Page:
        context = browser.new_context(base_url=served.address, **options)
        contexts.append(context)
        if role is not None:
            answer = context.request.post("/api/v1/session", headers=HEADER, data={"token": TOKENS[role]})
            assert answer.status == 204
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("response", lambda said: complaints.append(said.url) if lost(said) else None)
        page.on("console", lambda said: complaints.append(said.text) if "Content Security" in said.text else None)
        page.goto(f"/{path}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def lost(answer: Response) -> bool:
    """Whether media did not come that are there. 401: somebody has signed out while a clip was on its way."""
    missing = range(LOST * SIBLINGS, (LOST + 1) * SIBLINGS)
    wanted = "/media/" in answer.url and not any(f"{n:020x}" in answer.url for n in missing)
    return wanted and answer.status >= 400 and answer.status != 401


def cards(page: Page) -> Locator:
    return page.locator(".card")


def card(page: Page, number: int) -> Locator:
    return page.locator(f'.card[data-id="{number:020x}"]')


def listed(page: Page) -> list[str]:
    """The candidates of the cards, in their order."""
    return [str(each) for each in page.locator(".card").evaluate_all("all => all.map((e) => e.dataset.id)")]


def only(number: int) -> str:
    """The address's part that shows a candidate and those of its prompt: what others were decided about is newer."""
    return f"prompt_id=prompt-{number // SIBLINGS}"


def badge(of: Locator, word: str) -> None:
    expect(of.locator(".badge")).to_have_text(word)


def plays(picture: Locator, width: int) -> None:
    """The video has enough data to play, the right size, and its time goes on."""
    picture.wait_for(state="attached")
    handle = picture.element_handle()
    assert handle is not None
    page = handle.owner_frame()
    assert page is not None
    page.wait_for_function("v => v.readyState >= 3 && v.currentTime > 0 && !v.paused", arg=handle)
    assert handle.evaluate("v => v.videoWidth") == width


def api(page: Page, path: str) -> dict[str, Any]:
    answer = page.context.request.get(f"/api/v1/{path}")
    assert answer.ok, answer.text()
    return dict(answer.json())


def test_from_a_prompt_to_a_clip_that_plays(open_page: Open) -> None:
    page = open_page("?q=circle")
    page.get_by_role("button", name="New prompt").click()
    page.get_by_label(re.compile("^Prompt")).fill("a red circle moves slowly left")
    expect(page.locator("#prompts-hint")).to_contain_text("1 preview")
    page.get_by_role("button", name="Make previews").click()

    mine = cards(page).first
    expect(mine.locator(".prompt")).to_have_text("a red circle moves slowly left")
    badge(mine, "To review")
    mine.hover()
    plays(mine.locator("video"), 48)

    mine.focus()
    page.keyboard.press("a")
    badge(mine, "Approved")
    page.get_by_role("button", name=re.compile("Render 1.approved")).click()
    expect(page.locator("#confirm-cost")).to_contain_text("1\u00a0clip")
    page.locator("#confirm-yes").click()
    badge(mine, "Rendered")

    mine.focus()
    page.keyboard.press("Enter")
    plays(page.locator("#stage video.leader"), 96)
    plays(page.locator("#stage video.follower"), 48)
    page.wait_for_function(IN_STEP)
    slider = page.get_by_role("slider", name="Slider between preview and clip")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "51 % preview, 49 % clip"
    assert page.locator(".pair").evaluate("e => e.style.getPropertyValue('--split')") == "51%"
    page.keyboard.press("Escape")
    expect(mine).to_be_focused()


def test_reviewing_by_keyboard(open_page: Open) -> None:
    page, first = open_page(f"?status=review&{only(MANY - 1)}", role="reviewer"), MANY - 1
    card(page, first).focus()
    page.keyboard.press("a")
    badge(card(page, first), "Approved")
    expect(card(page, first - 1)).to_be_focused()
    page.keyboard.press("r")
    badge(card(page, first - 1), "Rejected")
    expect(page.locator("#announcer")).to_have_text("Rejected.")
    assert [api(page, f"candidates/{n:020x}")["decision"]["word"] for n in (first, first - 1)] == [
        "approved",
        "rejected",
    ]

    page.keyboard.press("u")
    badge(card(page, first - 1), "To review")
    page.keyboard.press("u")
    badge(card(page, first), "To review")
    expect(card(page, first)).to_be_focused()
    expect(page.locator("#announcer")).to_contain_text("Undone")
    assert api(page, f"candidates/{first:020x}")["status"] == "previewed"

    page.keyboard.press("ArrowRight")
    expect(card(page, first - 1)).to_be_focused()
    plays(card(page, first - 1).locator("video"), world.WIDTH)
    page.keyboard.press("Space")
    page.wait_for_function("() => document.querySelector('.card video').paused")

    before = listed(page)  # the newest first: a decision makes nothing newer
    page.reload()
    expect(cards(page)).to_have_count(SIBLINGS)
    assert listed(page) == before

    page.keyboard.press("ArrowRight")  # in the large view
    page.keyboard.press("Enter")
    title = page.locator("#detail-title")
    expect(title).to_contain_text("Candidate 1 of")
    page.keyboard.press("r")
    expect(title).to_contain_text("Candidate 2 of")
    page.locator("#detail").get_by_role("button", name="Approve").click()
    expect(title).to_contain_text("Candidate 3 of")
    page.keyboard.press("u")
    expect(title).to_contain_text("Candidate 2 of")
    page.keyboard.press("u")
    expect(title).to_contain_text("Candidate 1 of")
    expect(page.locator("#detail .badge")).to_have_text("To review")
    page.keyboard.press("Escape")
    badge(card(page, first), "To review")


def test_all_that_a_real_run_leaves_is_to_be_seen(open_page: Open) -> None:
    for prompt, word in ((REJECTED, "Rejected"), (RENDERED, "Rendered")):
        page = open_page(f"?prompt_id=prompt-{prompt}")
        badge(cards(page).first, word)
        page.wait_for_function(SEEN, arg=SIBLINGS)
        expect(page.locator(".lost:visible")).to_have_count(0)
        cards(page).first.focus()
        page.keyboard.press("Enter")
        plays(page.locator("#stage video.leader"), world.WIDTH)
        for what, note in NOTES.items():  # what a small card made otherwise than asked
            expected = [f"{what} was{note}"] if prompt == RENDERED else []
            expect(page.locator("#detail-facts tr", has_text=f"{what} was")).to_have_text(expected)
        page.context.close()


def test_what_is_lost_from_the_store_is_said_to_be(open_page: Open) -> None:
    page = open_page(f"?prompt_id=prompt-{LOST}")
    expect(page.locator(".card .lost:visible")).to_have_count(SIBLINGS)
    cards(page).first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#stage .lost")).to_contain_text("The preview cannot be shown")
    page.keyboard.press("c")
    expect(page.locator(".side-cell .lost")).to_have_count(SIBLINGS)


def test_side_by_side(open_page: Open) -> None:
    prompt = (MANY - 41) // SIBLINGS
    page, first = open_page(f"?prompt_id=prompt-{prompt}"), prompt * SIBLINGS
    card(page, first).focus()
    page.keyboard.press("c")
    side = page.locator(".side-cell")
    expect(side).to_have_count(SIBLINGS)
    expect(page.locator("#siblings-prompt")).to_have_text(f"shot {prompt} of a red star")
    plays(side.nth(3).locator("video"), world.WIDTH)
    page.keyboard.press("ArrowRight")
    expect(side.nth(1)).to_be_focused()
    page.keyboard.press("k")
    for number, word in enumerate(["Rejected", "Approved", "Rejected", "Rejected"]):
        badge(side.nth(number), word)
    expect(page.locator("#announcer")).to_have_text("Approved: 1\u00a0candidate. Rejected: 3\u00a0candidates.")
    page.keyboard.press("u")
    for number in range(SIBLINGS):
        badge(side.nth(number), "To review")
    expect(page.locator("#announcer")).to_contain_text("Undone")  # that is: stored


def test_ten_thousand_candidates(open_page: Open) -> None:
    page = open_page()
    expect(page.locator("#result-count")).to_contain_text("10\u202f")
    cards(page).first.focus()
    for _ in range(100):  # to the end of what is loaded, which loads more
        page.keyboard.press("Control+End")
        page.wait_for_timeout(200)
        if page.evaluate("() => Number(document.activeElement.closest('[role=row]')?.ariaRowIndex) > 60"):
            break
    else:
        pytest.fail("the end of the list is never reached")
    assert cards(page).count() < 80  # a few screens, not all
    assert page.locator("video").count() <= 1
    page.evaluate("scrollTo(0, 0)")
    expect(page.locator('[role=row][aria-rowindex="1"]')).to_be_visible()
    expect(page.locator(".card[tabindex='0']")).to_have_count(1)  # scrolled away, not lost


def test_one_word_for_all_that_match(open_page: Open) -> None:
    page = open_page("?status=review")
    page.get_by_role("searchbox").fill("shot 00")
    page.locator("#bounds-menu summary").click()
    page.get_by_label("motion from").fill("1.5")
    page.keyboard.press("Escape")  # closes the panel, keeps what it says
    expect(page.locator("#result-count")).to_have_text("250\u00a0candidates match")
    assert "min_motion=1.5" in page.url
    before = listed(page)
    page.get_by_role("button", name="Approve all that match").click()
    expect(page.get_by_role("dialog")).to_contain_text("Approve 250\u00a0candidates?")
    expect(page.locator("#confirm-cost")).to_contain_text("250\u00a0clips")
    page.locator("#confirm-yes").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert api(page, "candidates?status=approved&q=shot 00")["total"] == 250
    page.keyboard.press("u")
    expect(page.locator("#announcer")).to_contain_text("Undone")
    assert api(page, "candidates?status=approved&q=shot 00")["total"] == 0
    page.reload()
    expect(page.locator("#result-count")).to_have_text("250\u00a0candidates match")
    expect(cards(page).first).to_be_visible()
    assert listed(page) == before


def test_what_is_typed_stands_when_a_tab_is_chosen_at_once(open_page: Open) -> None:
    page = open_page()
    expect(cards(page).first).to_be_visible()
    page.get_by_role("searchbox").fill("shot 0012")
    page.get_by_role("button", name="To review").click()
    expect(page.locator("#result-count")).to_have_text("4\u00a0candidates match")
    assert page.get_by_role("searchbox").input_value() == "shot 0012"
    page.get_by_role("button", name="Clear filter").click()
    assert page.get_by_role("searchbox").input_value() == ""


def test_two_people_see_what_the_other_one_decides(open_page: Open) -> None:
    number = MANY - 9
    one, other = (open_page(f"?{only(number)}", role=role) for role in ("operator", "reviewer"))
    expect(other.locator("#live")).to_have_text("live")
    card(one, number).focus()
    one.keyboard.press("r")
    badge(card(other, number), "Rejected")
    expect(card(other, number).locator(".line")).to_have_text("by operator's name")
    card(other, number).focus()
    other.keyboard.press("a")
    badge(card(one, number), "Approved")
    other.keyboard.press("u")
    badge(card(one, number), "Rejected")  # undo brings back what was there before, as who said it
    expect(card(other, number).locator(".line")).to_have_text("by operator's name")
    expect(card(other, number)).to_be_focused()
    other.keyboard.press("a")
    badge(card(one, number), "Approved")
    one.keyboard.press("u")  # what another one said since stays
    expect(one.locator("#announcer")).to_contain_text("Nothing was undone.")
    badge(card(one, number), "Approved")
    other.keyboard.press("u")
    badge(card(one, number), "Rejected")
    card(one, number).focus()
    one.keyboard.press("a")
    badge(card(other, number), "Approved")
    one.keyboard.press("u")
    badge(card(other, number), "Rejected")


def test_a_preview_comes_to_the_review_as_soon_as_it_is_made(open_page: Open) -> None:
    short, long = open_page("?status=review&q=circle moves slowly up"), open_page("?status=review")
    expect(short.locator("#result-count")).to_have_text("0\u00a0candidates match")
    expect(cards(long).first).to_be_visible()
    for page in (short, long):
        expect(page.locator("#live")).to_have_text("live")
    count = long.locator("#result-count").inner_text()
    data = {"prompts": [{"prompt": "a red circle moves slowly up"}]}
    assert short.context.request.post("/api/v1/prompts", headers=HEADER, data=data).status == 202
    badge(cards(short), "To review")
    expect(short.locator("#result-count")).to_have_text("1\u00a0candidate match")
    expect(long.locator("#show-new")).to_have_text("Show 1\u00a0new one")  # it is not loaded to its end
    expect(long.locator("#result-count")).not_to_have_text(count)
    long.locator("#show-new").click()
    expect(cards(long).first.locator(".prompt")).to_have_text("a red circle moves slowly up")
    expect(long.locator("#show-new")).to_be_hidden()


def test_what_is_decided_while_the_page_loads_is_shown(open_page: Open) -> None:
    number = MANY - 13
    page = open_page(f"?{only(number)}")
    badge(card(page, number), "To review")

    def decide(word: str) -> None:
        data = {"decisions": [{"clip_id": f"{number:020x}", "word": word}]}
        assert page.context.request.post("/api/v1/decisions", headers=HEADER, data=data).ok

    def slowly(route: Route) -> None:
        answer = route.fetch()
        decide("rejected")
        route.fulfill(response=answer)

    page.route("**/api/v1/candidates?*", slowly, times=1)
    page.reload()
    badge(card(page, number), "Rejected")
    decide("cleared")
    badge(card(page, number), "To review")


def test_a_decision_that_is_not_stored_comes_back(open_page: Open) -> None:
    number = MANY - 1
    page = open_page(f"?{only(number)}")
    page.route("**/api/v1/decisions", lambda route: route.abort())
    card(page, number).focus()
    page.keyboard.press("a")
    expect(page.get_by_role("alert").filter(has_text="not stored")).to_have_count(1)
    badge(card(page, number), "To review")
    page.unroute("**/api/v1/decisions")
    page.get_by_role("button", name="Try again").click()
    badge(card(page, number), "Approved")
    page.keyboard.press("u")
    badge(card(page, number), "To review")


def test_where_approving_pays_at_once_it_is_said_before(open_page: Open) -> None:
    page = open_page("?q=shot 0011")
    expect(cards(page)).to_have_count(SIBLINGS)
    page.route("**/api/v1/run", lambda route: route.fulfill(json={**api(page, "run"), "refine_approved": True}))
    page.route("**/api/v1/events", lambda route: route.abort())  # they tell of the run as it is
    page.reload()
    expect(page.locator("#figures")).to_contain_text("from the moment it is approved")
    page.get_by_role("button", name="Approve all that match").click()
    expect(page.get_by_role("dialog")).to_contain_text("Rendering begins at once")
    page.keyboard.press("Escape")
    cards(page).first.locator(".frame").click()
    expect(page.locator("#detail")).to_contain_text("begins once it is approved")


def test_what_the_queue_has_no_room_for_is_said(open_page: Open) -> None:
    number = MANY - 17
    page = open_page(f"?{only(number)}")
    card(page, number).focus()
    page.keyboard.press("a")
    badge(card(page, number), "Approved")
    page.route("**/api/v1/refine", lambda route: route.fulfill(json={"queued": 1, "left": 2}))
    page.locator("#bulk-refine").click()
    page.locator("#confirm-yes").click()
    expect(page.locator("#announcer")).to_contain_text("no room for 2\u00a0clips more")
    card(page, number).focus()
    page.keyboard.press("u")
    badge(card(page, number), "To review")


def test_a_prompt_is_text(open_page: Open) -> None:
    page = open_page("?prompt_id=prompt-7")
    shown, first = visible(HOSTILE_TEXT), cards(page).first
    assert shown.endswith(r"\u202eder\u202c \x1b[31m")
    expect(first.locator(".prompt")).to_have_text(shown)
    expect(first.locator(".prompt")).to_have_attribute("title", shown)
    first.locator(".frame").click()
    expect(page.locator(".full-prompt")).to_have_text(shown)
    expect(page.locator("#stage video")).to_have_attribute("aria-label", f"Preview: {shown}")
    page.get_by_label("Note").fill("not \u202eder")
    page.locator("#detail").get_by_role("button", name="Approve").click()
    page.get_by_role("button", name="Previous candidate").click()
    expect(page.locator("#detail .status")).to_contain_text(r"not \u202eder")
    expect(first.locator(".line")).to_contain_text(r"not \u202eder")
    expect(first).to_have_attribute("aria-label", re.compile(re.escape(shown)))
    page.keyboard.press("u")
    expect(page.locator("#detail .badge")).to_have_text("To review")
    assert page.locator(".full-prompt *, .prompt *").count() == 0
    assert page.title() != "1"


def test_without_events_the_page_asks(open_page: Open) -> None:
    number = MANY - 2
    page = open_page(f"?{only(number)}")
    page.route("**/api/v1/events", lambda route: route.abort())
    page.reload()
    expect(page.locator("#live")).to_have_text("asking every few seconds")
    for word, shown in (("approved", "Approved"), ("cleared", "To review")):
        data = {"decisions": [{"clip_id": f"{number:020x}", "word": word}]}
        page.context.request.post("/api/v1/decisions", headers=HEADER, data=data)
        badge(card(page, number), shown)


def test_signing_in_and_roles(open_page: Open) -> None:
    page = open_page(role=None)
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#login-error")).to_have_text("That token is not known.")
    page.get_by_label("Token").fill(TOKENS["viewer"])
    page.keyboard.press("Enter")
    expect(cards(page).first).to_be_visible()
    assert page.locator(".act.approve:visible, .act.reject:visible, #bulk button:visible").count() == 0
    expect(page.get_by_role("button", name="New prompt")).to_be_hidden()
    cards(page).first.focus()
    page.keyboard.press("a")
    expect(page.locator("#announcer")).to_have_text("Decisions need the role reviewer.")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("dialog")).to_contain_text("Sign in")


def test_an_empty_run_and_a_service_that_is_away(open_page: Open) -> None:
    page = open_page()
    blank = {**api(page, "run"), "candidates": 0, "status": {}, "example_prompts": ["a red star <falls>"]}
    page.route("**/api/v1/run", lambda route: route.fulfill(json=blank))
    page.route("**/api/v1/candidates?*", lambda route: route.fulfill(json={"items": [], "next": None, "total": 0}))
    page.route("**/api/v1/events", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("heading", name="No previews yet")).to_be_visible()
    page.get_by_role("button", name="a red star <falls>").click()
    expect(page.get_by_label(re.compile("^Prompt"))).to_have_value("a red star <falls>")
    page.keyboard.press("Escape")
    assert page.locator("#sort option").count() >= 2  # there is something to sort by before there are scores
    page.unroute_all()
    page.route("**/api/v1/**", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("heading", name="The candidates cannot be shown")).to_be_visible()
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    expect(cards(page).first).to_be_visible()

    page.get_by_role("button", name="To review").click()
    expect(page.locator("#bulk-approve")).to_be_visible()
    page.route("**/api/v1/candidates?*", lambda route: route.abort())
    page.get_by_role("searchbox").fill("shot 0012")
    expect(page.get_by_role("heading", name="The candidates cannot be shown")).to_be_visible()
    expect(cards(page)).to_have_count(0)  # those of the filter before would be taken for this one's
    expect(page.locator("#bulk-approve")).to_be_hidden()
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    expect(cards(page)).to_have_count(SIBLINGS)
    expect(page.locator("#bulk-approve")).to_be_visible()


def test_on_a_phone(open_page: Open) -> None:
    page = open_page("?q=shot", viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    expect(cards(page).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate(SMALL_TARGETS) == []
    for width in (390, 800):
        page.set_viewport_size({"width": width, "height": 844})
        page.locator("#bounds-menu summary").tap()
        box = page.get_by_label("motion to").bounding_box()
        panel = page.locator("#bounds").bounding_box()
        assert box is not None and panel is not None  # noqa: PT018
        assert panel["x"] >= 0
        assert max(each["x"] + each["width"] for each in (box, panel)) <= width
        page.locator("#bounds-menu summary").tap()
    page.set_viewport_size({"width": 390, "height": 844})
    cards(page).first.locator(".play").tap()
    plays(cards(page).first.locator("video"), world.WIDTH)
    cards(page).first.locator(".frame").tap()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate(SMALL_TARGETS) == []
    assert page.evaluate("document.querySelector('#detail').scrollWidth") <= 390


def test_nothing_moves_by_itself_where_that_is_not_wanted(open_page: Open) -> None:
    page = open_page("?q=shot", reduced_motion="reduce")
    cards(page).first.hover()
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(500)
    assert page.locator("video").count() == 0
    page.keyboard.press("Space")
    plays(page.locator(".card video"), world.WIDTH)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(open_page: Open, scheme: str) -> None:
    page = open_page(color_scheme=scheme, bypass_csp=True)  # axe is a script of the test, not of the page
    expect(cards(page).first).to_be_visible()
    assert violations(page) == []
    for keys, dialog in ((["Enter"], "detail"), (["c"], "siblings"), (["n"], "submit"), (["?"], "help")):
        cards(page).first.focus()
        for key in keys:
            page.keyboard.press(key)
        expect(page.locator(f"#{dialog}")).to_be_visible()
        assert violations(page) == [], dialog
        page.keyboard.press("Escape")
    page.get_by_role("button", name=re.compile("^Approve all")).click()
    expect(page.locator("#confirm")).to_be_visible()
    assert violations(page) == []
    page = open_page(role=None, color_scheme=scheme, bypass_csp=True)
    expect(page.locator("#token")).to_be_visible()
    assert violations(page) == []


def violations(page: Page) -> list[str]:
    """What axe-core finds serious or critical, with where it is."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {node['html']} {node['failureSummary']}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
