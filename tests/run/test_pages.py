"""Every kind of page in a headless browser: wide and narrow, light and dark."""

import re

import pytest

from tests.run.browser import Browser, find_browser
from tests.run.page_numbers import blocks_of_page, numbers_not_in
from tests.run.page_samples import make_pages

# The browser's text sizes and places are those of its own typeface.
INSIDE = 1.0  # CSS pixels that may be missing at an edge
SMALLEST = 9.0  # CSS pixels of any text of a figure
CONTRAST = 4.5  # of text to what is behind it, WCAG 2.1, 1.4.3
DRAWN_CONTRAST = 3.0  # of text in figures, whose colour says what it belongs to

FAULTS = """(inside, smallest, least, leastDrawn) => {
  const found = [];
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) found.push(`page ${root.scrollWidth} wide`);
  const drawn = [...document.querySelectorAll("figure svg")].filter(s => s.getClientRects().length);
  if (drawn.length !== document.querySelectorAll("figure").length) found.push("figures not shown");
  const luminance = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const page = luminance(getComputedStyle(document.body).backgroundColor);
  const contrast = colour => {
    const [a, b] = [luminance(colour), page].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  for (const element of document.querySelectorAll("main *:not(svg *)")) {
    const box = element.getBoundingClientRect();
    if (box.width && (box.right > innerWidth + inside || box.left < -inside))
      found.push(`${element.tagName} ${element.textContent.slice(0, 40)} reaches ${box.right}`);
  }
  for (const element of document.querySelectorAll("h1, h2, h3, p, td, th, dd, dt, li, summary"))
    if (element.getClientRects().length && contrast(getComputedStyle(element).color) < least)
      found.push(`contrast of ${element.tagName} ${element.textContent.slice(0, 40)}`);
  let texts = 0, legends = 0;
  for (const drawing of drawn) {
    const frame = drawing.getBoundingClientRect();
    const scale = frame.width / drawing.viewBox.baseVal.width;
    const outside = (element, what) => {
      const box = element.getBoundingClientRect();
      if (box.left < frame.left - inside || box.right > frame.right + inside ||
          box.top < frame.top - inside || box.bottom > frame.bottom + inside)
        found.push(`${what} ${element.textContent.trim().slice(0, 60)} outside its figure`);
    };
    for (const text of drawing.querySelectorAll("text")) {
      texts += 1;
      for (const part of [text, ...text.querySelectorAll("tspan")]) {
        const size = parseFloat(getComputedStyle(part).fontSize) * scale;
        if (part.textContent.trim() && size < smallest)
          found.push(`${part.textContent} has ${size} pixels`);
      }
      outside(text, "text");
      const colour = getComputedStyle(text).fill;
      if (colour !== "rgb(255, 255, 255)" && contrast(colour) < leastDrawn)
        found.push(`contrast of ${text.textContent}, ${colour}`);
    }
    for (const legend of drawing.querySelectorAll("[id*=legend_]")) {
      legends += 1;
      outside(legend, "legend");
    }
  }
  return {found, texts, legends, figures: drawn.length};
}"""
EXAMINE = f"({FAULTS})({INSIDE}, {SMALLEST}, {CONTRAST}, {DRAWN_CONTRAST})"


@pytest.fixture(scope="module")
def browser():
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium is installed: pages are not looked at (apt-get install chromium)")
    with Browser(path) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return make_pages(tmp_path_factory.mktemp("pages"))


def test_every_page_on_every_screen(browser, pages):
    seen, faults = {"figures": 0, "texts": 0, "legends": 0}, []
    for name, page in pages.items():
        assert "Does it pay?" in page.path.read_text(), name
        browser.open(page.path, 1280)
        for width in (1280, 960, 390):
            for dark in (False, True):
                browser.show(width, dark=dark)
                result = browser.evaluate(EXAMINE)
                where = f"{name}, {width} pixels, {'dark' if dark else 'light'}"
                faults += [f"{where}: {text}" for text in result["found"]]
                for key in seen:
                    seen[key] += result[key]
    assert not faults, "\n".join(faults[:40])
    assert not browser.errors
    # The examination sees something.
    assert seen["figures"] > 80 and seen["texts"] > 1000 and seen["legends"] > 20


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("</main>", '<div style="width: 500px">wide</div></main>', "page 5"),
        ("font-size: 9px", "font-size: 5px", "pixels"),
        ('id="legend_1"', 'id="legend_1" transform="translate(0 -90)"', "outside its figure"),
        ("</main>", '<script>console.error("planted")</script></main>', ""),
        ("--ink: #e4e7ea", "--ink: #30343a", "contrast"),
    ],
)
def test_planted_faults_are_seen(browser, pages, tmp_path, old, new, fault):
    text = pages["chain"].path.read_text()
    if "legend" in old:
        text, count = re.subn(
            r'id="(f\w+-legend_1)"', r'id="\1" transform="translate(0 -90)"', text
        )
        assert count
    else:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "planted.html"
    path.write_text(text)
    browser.open(path, 390, dark=True)
    found = browser.evaluate(EXAMINE)["found"]
    if fault:
        assert any(fault in one for one in found), found
    else:
        assert any("planted" in one for one in browser.errors)
        browser.errors.clear()


def test_every_number_of_a_page_is_in_its_json(pages):
    for name, page in pages.items():
        text = page.path.read_text()
        assert numbers_not_in(text, page.document) == [], name
        assert len(blocks_of_page(text)) > 20


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"(<dd>[^<]*\.\d)(\d)", r"\g<1>7\2"),
        (r"(<td class=\"number\"[^>]*><span>[^<]*\.)", r"\g<1>9"),
        (r"<h2>Kernels</h2>", "<h2>Kernels</h2><p>An ESS of 0.31.</p>"),
        (r"<h2>Kernels</h2>", "<h2>Kernels</h2>0.31"),
        (r"</td></tr></tbody>", '</td></tr><tr><td class="number">5</td></tr></tbody>'),
        (r"(<h3>[^<]*<small>-?\d\.\d)", r"\g<1>5"),
        (r"(<li>[^<]*) (\d)", r"\g<1> 7\g<2>"),
        (r"steps = 10", "steps = 11"),
        (r"(<strong>)\d", r"\g<1>9"),
    ],
)
def test_a_number_that_only_the_page_has_is_seen(pages, old, new):
    page = pages["chain"]
    text, count = re.subn(old, new, page.path.read_text(), count=1)
    assert count and numbers_not_in(text, page.document)
