"""The pages in a real browser, headless: width, keyboard, contrast, print, and what it complains about."""

import shutil
import types

import pytest

from experiments import __main__ as entry

from .made_up import results

pytest.importorskip("selenium")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium, or no chromedriver")

PAGES = ("index.html", "identities/identities.html")

# Of every text that is seen: its colour on the first background that is not see-through (WCAG 2.2, 1.4.3).
CONTRAST = """
const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
  .map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
const found = [];
let count = 0;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("script, .skip")) continue;
  const style = getComputedStyle(element);
  let behind = element;
  while (behind && (channels(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
  const [a, b] = [style.color, getComputedStyle(behind ?? document.body).backgroundColor]
    .map((colour) => luminance(channels(colour)));
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  const size = parseFloat(style.fontSize);
  const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
  count += 1;
  if (ratio < (large ? 3 : 4.5)) found.push(`${walker.currentNode.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
}
return [count, found];
"""
CONTROLS = "a[href], button, input, select, summary, [tabindex='0']"
UNFOLD = "document.querySelectorAll('details').forEach((box) => { box.open = true })"
SEEN = f'return [...document.querySelectorAll("{CONTROLS}")].filter((each) => each.checkVisibility()).length'


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    profile = tmp_path_factory.mktemp("profile")
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")  # no sandbox: there is none for root, as in a container
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = results(tmp_path_factory.mktemp("results"))
    assert entry.main(["report", str(folder), "--no-api"]) == 0
    return folder


@pytest.fixture(params=PAGES)
def page(request, browser, made):
    """One page, open, in the browser; `keys` types, `run` is a script's value, `emulate` chooses medium and colours."""

    def emulate(medium="", **features):
        listed = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium, "features": listed})

    def widen(width):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def keys(*typed):
        from selenium.webdriver import ActionChains

        ActionChains(browser, duration=0).send_keys(*typed).perform()

    emulate()
    widen(1200)
    browser.get((made / request.param).as_uri())
    run = browser.execute_script
    return types.SimpleNamespace(name=request.param, run=run, emulate=emulate, widen=widen, keys=keys, driver=browser)


def shown(page, selector, read):
    """`read` of each element of the selector that is seen."""
    seen = f"[...document.querySelectorAll('{selector}')].filter((each) => each.checkVisibility())"
    return page.run(f"return {seen}.map((each) => {read})")


@pytest.mark.sweep
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_does_not_scroll_sideways(page, width):
    page.widen(width)
    page.run(UNFOLD)
    assert page.run("return document.documentElement.scrollWidth") <= width
    # What is wider than its box scrolls in it by keys.
    page.run("dispatchEvent(new Event('resize'))")
    wide = """return [...document.querySelectorAll("main *")].filter((box) => box.scrollWidth > box.clientWidth + 1
      && getComputedStyle(box).overflowX !== "visible" && box.tabIndex !== 0).map((box) => box.outerHTML)"""
    assert page.run(wide) == []


def test_the_browser_has_nothing_to_say_and_loads_nothing(page):
    assert page.driver.get_log("browser") == []
    loaded = page.run("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []


@pytest.mark.sweep
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_text_has_contrast(page, colours):
    page.emulate(prefers_color_scheme=colours)
    page.run(UNFOLD)
    count, found = page.run(CONTRAST)
    assert found == []
    assert count > 500
    paper = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (colours == "light")


def test_every_control_is_reached_by_the_keyboard_and_seen(page):
    from selenium.webdriver.common.keys import Keys

    page.run("""window.reached = new Set(); window.unseen = [];
      addEventListener("focusin", ({ target }) => {
        reached.add(target);
        const style = getComputedStyle(target);
        if (style.outlineStyle === "none" || parseFloat(style.outlineWidth) < 2) unseen.push(target.outerHTML);
      })""")
    count = page.run(SEEN)
    assert count > 10
    for _ in range(0, count + 8, 8):
        page.keys(*[Keys.TAB] * 8)
    missed = f"""return [...document.querySelectorAll("{CONTROLS}")]
      .filter((each) => each.checkVisibility() && !reached.has(each)).map((each) => each.outerHTML)"""
    assert page.run(missed) == []
    assert page.run("return unseen") == []


def test_the_skip_link_comes_first(page):
    from selenium.webdriver.common.keys import Keys

    page.keys(Keys.TAB)
    assert page.run("return document.activeElement.className") == "skip"
    assert page.run("return document.activeElement.getBoundingClientRect().left") >= 0
    page.keys(Keys.ENTER)
    assert page.run("return document.activeElement.id") == "main"


def test_pictures_have_words_and_equations_a_size(page):
    assert page.run("return [...document.images].filter((image) => !image.alt || !image.naturalWidth).length") == 0
    page.run(UNFOLD)
    sizes = page.run("""return [...document.querySelectorAll("math")].map((each) => {
      const box = each.getBoundingClientRect();
      return [each.getAttribute("alttext"), box.width, box.height];
    })""")
    if page.run("return document.querySelectorAll('.equation svg').length") == 0:  # else without latex2mathml
        assert len(sizes) >= 128
    assert [size for size in sizes if not (size[0] and size[1] > 4 and size[2] > 4)] == []


def test_paper_has_what_is_unfolded_and_no_controls(page):
    page.run("document.querySelectorAll('details').forEach((each, place) => { each.open = place % 2 === 0 })")
    page.emulate("print", prefers_color_scheme="dark")
    assert shown(page, "form, .skip, .top, details.source", "each.outerHTML") == []
    assert shown(page, "details:not([open])", "each.outerHTML") == []
    folded = """return [...document.querySelectorAll("details[open]:not(.source) > :not(summary)")]
      .filter((each) => !each.checkVisibility() || !each.getBoundingClientRect().height)
      .map((each) => each.outerHTML)"""
    assert page.run(folded) == []
    assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_overview_sorts_and_filters(page):
    from selenium.webdriver.common.keys import Keys

    if page.name != "index.html":
        pytest.skip("has no overview")
    names = lambda: shown(page, ".overview tbody tr", "each.cells[0].textContent")
    header = "document.querySelectorAll('.overview th button')"
    first = names()
    assert first == ["identities", "vanishing", "gates", "once & <again> ü"]
    page.run(f"{header}[4].focus()")
    page.keys(Keys.ENTER)
    assert names() == ["vanishing", "gates", "identities", "once & <again> ü"]
    page.keys(Keys.SPACE)
    assert names() == ["once & <again> ü", "identities", "gates", "vanishing"]
    sorts = "return [...document.querySelectorAll('.overview thead th')].map((each) => each.getAttribute('aria-sort'))"
    assert page.run(sorts) == ["none", "none", "none", "none", "descending"]
    page.run(f"{header}[0].focus()")
    page.keys(Keys.ENTER)
    assert names() == sorted(first)
    page.run("document.querySelector('input[type=search]').focus()")
    page.keys("CHECK failed")
    assert names() == ["gates"]
    assert shown(page, "main > section[id]", "each.id") == ["run-gates"]
    assert page.run("return document.querySelector('output').textContent") == "1 of 4 runs"
    page.keys(*[Keys.BACKSPACE] * 12)
    assert names() == sorted(first)
    table = "document.querySelector('#run-once----again--ü')"
    assert page.run(f"return {table}.checkVisibility()")


def test_numbers_sort_as_numbers(page):
    if page.name != "index.html":
        pytest.skip("has no tables of numbers")
    table = "document.querySelectorAll('#run-gates table')[1]"
    names = f"return [...{table}.tBodies[0].rows].map((row) => row.cells[0].textContent)"
    for order in (["gru", "lstm"], ["lstm", "gru"]):  # 3 and 11
        page.run(f"{table}.querySelectorAll('button')[2].click()")
        assert page.run(names) == order


def test_identities_filter_and_sort(page):
    from selenium.webdriver.common.keys import Keys

    if page.name == "index.html":
        pytest.skip("the other page")
    ids = lambda: shown(page, "article", "each.id")
    first = ids()
    assert len(first) == 128
    page.run("document.querySelector('select[data-key=source]').focus()")
    page.keys("S4")
    assert {id.split(".")[0] for id in ids()} == {"S4"}
    assert shown(page, "section[data-group] h2", "each.id") == ["S4"]
    page.run("document.querySelector('select[data-key=verdict]').focus()")
    page.keys("fails")
    assert len(ids()) == 6
    page.run("document.querySelector('input[type=search]').focus()")
    page.keys("14 terms")
    assert ids() == ["S4.11"]
    assert page.run("return document.querySelector('output').textContent") == "1 of 128 equations"
    page.keys(*[Keys.BACKSPACE] * 8)
    page.run("""for (const select of document.querySelectorAll("select[data-key]")) select.value = "";
      const order = document.querySelector("select[data-sort]");
      order.value = "place";
      for (const kind of ["input", "change"]) order.dispatchEvent(new Event(kind, { bubbles: true }))""")
    assert ids()[:3] == ["S0.2", "S0.3", "S0.4"]
    assert sorted(ids()) == sorted(first)
