"""The page in Chromium, from the disk and without a network. Skipped, and says so, where there is no Chromium."""

import shutil
from pathlib import Path

import pytest

from plugins.files import write_json
from plugins.report import LivePage, write_inference_report, write_study_report

from .conftest import FAILED

ASSETS = Path(__file__).parent / "assets"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = ["--no-sandbox", "--disable-background-networking"]
SOFTWARE_GL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
VIEWS = {
    "wide": {"viewport": {"width": 1280, "height": 900}},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
}


@pytest.fixture(scope="module")
def launch():
    """Chromium with or without WebGL."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra 'browser')")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine: the report was not looked at in a browser")
    with api.sync_playwright() as play:
        opened = []

        def start(*options):
            opened.append(play.chromium.launch(executable_path=CHROMIUM, args=[*OPTIONS, *options]))
            return opened[-1]

        yield start
        for browser in opened:
            browser.close()


@pytest.fixture(scope="module")
def browser(launch):
    return launch(*SOFTWARE_GL)


def opened(browser, path, ready="#viewer-canvas[data-ready]", **view):
    """A page from the disk, and what it complained of or asked the network for."""
    page = browser.new_context(offline=True, **view).new_page()
    faults = []
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    inner = ("file:", "data:", "blob:")
    page.on("request", lambda asked: None if asked.url.startswith(inner) else faults.append(asked.url))
    page.goto(path.as_uri())
    page.wait_for_selector(ready, timeout=60_000)
    return page, faults


@pytest.fixture(scope="module")
def pages(run, tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    scans = [{"case": path.name[:-12], "image": str(path)} for path in sorted((run / "scans").iterdir())]
    scans.append({"case": "broken", "image": "broken.nii.gz"})
    failed = {"broken": f"/{'very_long_' * 12}.nii.gz: cannot be read. Copy it again."}
    inference = write_inference_report(scans, run / "round_1" / "validation", root / "inference", failed)
    write_json(root / "dataset.partial" / "progress.json", {"done": 1, "total": 3, "seconds_left": 5})
    live = LivePage(["dataset", "report"], root)
    live.update(["dataset"])
    study = write_study_report({"a": {0: run}, "b": {0: run}}, root / "study")
    return {"run": run / "report" / "index.html", "study": study, "inference": inference, "live": live.path}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["run", "study", "inference", "live"])
def test_the_page_is_accessible_and_fits_whatever_shows_it(browser, pages, name, view):
    ready = "main" if name == "live" else "#viewer-canvas[data-ready]"
    page, faults = opened(browser, pages[name], ready, **VIEWS[view])
    assert faults == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for details in page.query_selector_all("details"):
        details.evaluate("each => each.open = true")
    page.evaluate((ASSETS / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("levels => axe.run(document, {runOnly: {type: 'tag', values: levels}})", LEVELS)
    assert [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found["violations"]] == []
    assert len(found["passes"]) > 10


def test_the_viewer_scrolls_fades_and_changes_the_scan(browser, pages):
    page, faults = opened(browser, pages["run"], **VIEWS["wide"])
    canvas, number = page.locator("#viewer-canvas"), page.locator("#viewer-number")
    assert FAILED in page.locator("#viewer-case option").first.text_content()
    page.locator("#viewer-box").scroll_into_view_if_needed()

    def seen():
        page.wait_for_timeout(300)
        return canvas.screenshot()

    first, before = seen(), int(number.text_content().split()[0])
    page.locator("#viewer-slice").focus()
    page.keyboard.press("ArrowRight")
    assert int(number.text_content().split()[0]) == before + 1
    assert seen() != first
    page.keyboard.press("ArrowLeft")
    assert seen() == first
    canvas.hover()
    page.mouse.wheel(0, 240)
    page.wait_for_function(f"document.getElementById('viewer-number').textContent.split(' ')[0] != '{before}'")

    page.locator("#viewer-map").select_option("reference")
    page.wait_for_selector("#viewer-canvas[data-ready='0 reference']")
    on = seen()
    page.locator("#viewer-overlay").uncheck()
    assert canvas.get_attribute("data-overlay") == "none"
    off = seen()
    assert off != on
    page.locator("#viewer-overlay").check()
    assert seen() == on
    page.locator("#viewer-opacity").fill("1")
    assert seen() not in (on, off)

    page.locator("#viewer-case").select_option("1")
    page.wait_for_selector("#viewer-canvas[data-ready^='1 ']")
    assert faults == []


def test_the_viewer_of_a_study_shows_each_method_against_the_truth(browser, pages):
    page, faults = opened(browser, pages["study"], **VIEWS["wide"])
    canvas = page.locator("#viewer-canvas")
    assert page.locator("#viewer-method option").all_text_contents() == ["a", "b"]
    page.locator("#viewer-map").select_option("difference")
    page.wait_for_selector("#viewer-canvas[data-ready='0 difference a']")
    page.locator("#viewer-method").select_option("b")
    page.wait_for_selector("#viewer-canvas[data-ready='0 difference b']")
    assert canvas.get_attribute("data-overlay") == "b difference"
    page.locator("#viewer-case").select_option("2")
    page.wait_for_selector("#viewer-canvas[data-ready='2 difference b']")
    assert faults == []


@pytest.mark.parametrize("name", ["run", "study"])
def test_in_print_pictures_are_there_the_viewer_is_not_and_nothing_is_cut(browser, pages, name):
    page, _ = opened(browser, pages[name], viewport={"width": 703, "height": 1032}, color_scheme="dark")  # A4 in 12 mm
    pictures = page.locator("img").evaluate_all("all => new Set(all.map((each) => each.src)).size")
    assert page.pdf(format="A4").count(b"/Subtype /Image") >= pictures > 0  # also those that nobody has scrolled to
    page.emulate_media(media="print")
    assert page.locator("#viewer").is_hidden()
    assert page.locator("nav").is_hidden()
    for picture in page.locator("#pictures img").all():
        picture.scroll_into_view_if_needed()
        assert picture.evaluate("each => each.decode().then(() => each.naturalWidth)") > 0
        assert picture.bounding_box()["width"] > 100
    for details in page.query_selector_all("details"):
        details.evaluate("each => each.open = true")
    wide = (
        "all => all.filter((each) => each.getBoundingClientRect().right > innerWidth + 1).map((each) => each.outerHTML)"
    )
    assert page.locator("table, img, svg, pre, p").evaluate_all(wide) == []
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    red = page.locator(".chip.red").first.evaluate("each => getComputedStyle(each).color")
    assert red == "rgb(163, 20, 29)"  # that of the light page, in the dark too


def test_without_webgl_the_page_says_so_and_keeps_its_pictures(launch, pages):
    page, faults = opened(launch("--disable-gpu", "--disable-3d-apis"), pages["run"], "#viewer-state")
    page.wait_for_function("document.getElementById('viewer-state').textContent.includes('no WebGL 2')")
    assert page.locator("#viewer-form").is_hidden()
    assert page.locator("#pictures img").count() == 3
    assert faults == []


def test_a_new_user_finds_the_failed_scan_and_why_on_the_first_screen(browser, pages):
    page, _ = opened(browser, pages["run"], **VIEWS["wide"])
    worst = page.get_by_text("Worst:")
    assert worst.bounding_box()["y"] < 900
    assert FAILED in worst.text_content()
    assert "Dice of the VS is 0.00" in worst.text_content()
    worst.get_by_role("link").click()
    picture = page.locator("#case-1 img")
    picture.scroll_into_view_if_needed()
    assert "no VS was found" in picture.get_attribute("alt")
