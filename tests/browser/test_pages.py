"""What a person meets who opens a page: on a desktop, on a phone, in the dark, in print, by keyboard, offline."""

import base64
import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from tests.browser.conftest import KINDS, Page

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

CONTRAST = """
const linear = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
const light = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const clear = text => text === 'none' || text === 'transparent' || (rgb(text).length === 4 && rgb(text)[3] === 0);
document.querySelectorAll('details').forEach(d => d.open = true);
const found = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || ['TITLE', 'DESC', 'title', 'desc', 'STYLE'].includes(e.tagName)) continue;
  if (!e.getClientRects().length || getComputedStyle(e).visibility === 'hidden') continue;
  const svg = e.tagName === 'text';
  const front = rgb(getComputedStyle(e)[svg ? 'fill' : 'color']);
  const backs = [];
  if (svg) document.querySelectorAll('.band').forEach(b => { if (b.ownerSVGElement === e.ownerSVGElement)
    backs.push(rgb(getComputedStyle(b).fill)); });
  let behind = e;
  while (behind && clear(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
  backs.push(behind ? rgb(getComputedStyle(behind).backgroundColor) : [255, 255, 255]);
  for (const back of backs) {
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    const name = e.tagName + '.' + (e.getAttribute('class') || '');
    found.push([(a + 0.05) / (b + 0.05), name + ': ' + e.textContent.slice(0, 40)]);
  }
}
return found;
"""

CURVES = """
const linear = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
const light = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const found = [];
for (const e of document.querySelectorAll('svg path')) {
  if (!e.getClientRects().length) continue;
  const backs = [...e.ownerSVGElement.querySelectorAll('.band')].map(b => rgb(getComputedStyle(b).fill));
  backs.push(rgb(getComputedStyle(document.body).backgroundColor));
  for (const back of backs) {
    const [a, b] = [light(rgb(getComputedStyle(e).stroke)), light(back)].sort((x, y) => y - x);
    found.push((a + 0.05) / (b + 0.05));
  }
}
return found;
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_asks_for_nothing_and_complains_of_nothing(page: Page, kind: str):
    page.open(kind)
    events = [json.loads(entry["message"])["message"] for entry in page.logs("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert any(url.endswith(f"{kind}.html") for url in asked)  # the log does see requests
    assert {url.split(":")[0] for url in asked if not url.endswith(f"{kind}.html")} <= {"data"}
    assert page.logs("browser") == []
    assert page.run("return document.compatMode") == "CSS1Compat"
    loaded = page.run("return [...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert loaded
    assert all(loaded)


def test_the_browser_would_report_a_request_and_a_complaint(page: Page):
    # the oracle of the test above: a page with a picture from elsewhere gives both an entry and a request
    page.open("run")
    page.run("const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i)")
    assert any("Content Security Policy" in entry["message"] for entry in page.logs("browser"))


@pytest.mark.parametrize(("kind", "width"), list(itertools.product(KINDS, (390, 1280))))
def test_nothing_scrolls_sideways_with_everything_opened(page: Page, kind: str, width: int):
    page.open(kind, width=width)
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.run("return window.innerWidth") == width
    assert page.run("return document.documentElement.scrollWidth") <= width
    spilled = page.run(
        "return [...document.querySelectorAll('main *, header *')]"
        ".filter(e => !e.closest('.scroll') && !e.closest('svg')"
        f" && e.getBoundingClientRect().right > {width} + 0.5).map(e => e.tagName + ' ' + e.className)"
    )
    assert spilled == []


@pytest.mark.parametrize(("kind", "scheme"), list(itertools.product(KINDS, ("light", "dark"))))
def test_text_has_a_contrast_of_4_5_and_curves_of_3(page: Page, kind: str, scheme: str):
    page.open(kind, scheme=scheme)
    background = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    text = page.run(CONTRAST)
    assert len(text) > 50
    assert [line for ratio, line in text if ratio < 4.5] == []
    curves = page.run(CURVES)
    assert curves
    assert min(curves) >= 3.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_keyboard_reaches_and_opens_every_link_and_table(page: Page, kind: str):
    page.open(kind)
    wanted = page.run("return document.querySelectorAll('a[href], summary').length")
    reached = set()
    for _ in range(wanted + 40):  # scrollable tables are stops too
        page.call(
            "Input.dispatchKeyEvent", {"type": "keyDown", "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
        )
        page.call("Input.dispatchKeyEvent", {"type": "keyUp", "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9})
        seen = page.run(
            "const e = document.activeElement; const s = getComputedStyle(e);"
            "return [[...document.querySelectorAll('a[href], summary')].indexOf(e), s.outlineStyle, e.tagName]"
        )
        if seen[0] >= 0:
            assert seen[1] != "none", f"no sign of the focus on {seen}"
            reached.add(seen[0])
    assert reached == set(range(wanted))
    if page.run("return document.querySelectorAll('summary').length"):
        page.run("document.querySelector('summary').focus()")
        enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        page.call("Input.dispatchKeyEvent", {"type": "keyDown", **enter})
        page.call("Input.dispatchKeyEvent", {"type": "keyUp", **enter})
        assert page.run("return document.querySelector('details').open") is True


@pytest.mark.parametrize("kind", KINDS)
def test_headings_pictures_and_charts_speak_to_who_does_not_see_them(page: Page, kind: str):
    page.open(kind)
    levels = page.run("return [...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => Number(h.tagName[1]))")
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.run("return [...document.images].every(i => i.alt.length > 10)")
    named = page.run(
        "return [...document.querySelectorAll('svg[role=img]')].map(s => s.getAttribute('aria-labelledby').split(' ')"
        ".map(id => (document.getElementById(id) || {}).textContent || ''))"
    )
    assert named
    assert all(len(title) > 3 and len(description) > 20 for title, description in named)
    ids = page.run("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    links = page.run(
        "return [...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href').slice(1))"
    )
    assert set(links) <= set(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_one_drawing_of_each_chart_is_shown_and_its_text_is_readable(page: Page, kind: str):
    for width in (390, 1280):
        page.open(kind, width=width)
        counts = page.run(
            "return [...document.querySelectorAll('figure.chart')].map(f => "
            "[...f.querySelectorAll('svg[role=img]')].filter(s => s.getClientRects().length).length)"
        )
        assert counts
        assert set(counts) == {1}
        heights = page.run(  # of the text as it is on the screen, in CSS pixels
            "return [...document.querySelectorAll('svg[role=img] text')].filter(t => t.getClientRects().length)"
            ".map(t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a)"
        )
        assert min(heights) > 10.5


@pytest.mark.parametrize("width", [390, 1280])
def test_no_label_of_the_settings_view_lies_on_another(page: Page, width: int):
    page.open("sweep", width=width)
    labels = page.run(
        "return [...document.querySelectorAll('svg.parallel text')].filter(t => t.getClientRects().length)"
        ".map(t => { const b = t.getBoundingClientRect(); return [t.textContent, b.left, b.top, b.right, b.bottom]; })"
    )
    assert {text for text, *_ in labels} >= {"layer normalisation", "spectral normalisation", "none of them", "L_opt"}
    lying = [
        (a[0], b[0])
        for a, b in itertools.combinations(labels, 2)
        if min(a[3], b[3]) > max(a[1], b[1]) and min(a[4], b[4]) - max(a[2], b[2]) > 2  # 2: air above the letters
    ]
    assert lying == []


def test_a_phone_shows_the_whole_name_of_a_wide_table(page: Page):
    page.open("sweep", width=390)
    ends = page.run(
        "return [...document.querySelectorAll('caption span')].filter(t => t.getClientRects().length)"
        ".map(t => t.getBoundingClientRect().right)"
    )
    assert ends
    assert max(ends) <= 390


@pytest.mark.parametrize("kind", KINDS)
def test_print_shows_whole_charts_on_white(page: Page, kind: str):
    page.open(kind, width=680, scheme="dark", media="print")  # 210 mm less margins, at 96 dots per inch
    assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    cut = page.run(
        "return [...document.querySelectorAll('figure.chart svg[role=img]')].filter(s => s.getClientRects().length)"
        ".map(s => s.getBoundingClientRect()).filter(r => r.left < -0.5 || r.right > 680.5 || r.height < 100).length"
    )
    assert cut == 0
    broken = page.run(
        "return [...document.querySelectorAll('figure')]"
        ".filter(f => getComputedStyle(f).breakInside !== 'avoid').length"
    )
    assert broken == 0
    pdf = page.call("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})
    assert base64.b64decode(pdf["data"]).startswith(b"%PDF")


@pytest.mark.parametrize("kind", KINDS)
def test_print_has_every_column_of_every_table_and_what_is_folded(page: Page, kind: str):
    page.open(kind, width=680, media="print")
    tables = page.run(
        "return [...document.querySelectorAll('table')]"
        ".map(t => [t.getBoundingClientRect().right, t.checkVisibility({contentVisibilityAuto: true})])"
    )
    assert tables
    assert max(right for right, _ in tables) <= 680
    folded = page.run(
        "return [...document.querySelectorAll('details:not(.chart details) table')].map(t => t.getClientRects().length)"
    )
    assert all(folded)


def test_light_and_dark_are_two_pictures(page: Page):
    means = []
    for scheme in ("light", "dark"):
        page.open("run", scheme=scheme)
        data = base64.b64decode(page.call("Page.captureScreenshot", {})["data"])
        means.append(np.asarray(Image.open(io.BytesIO(data)).convert("L"), dtype=float).mean())
    assert means[0] > 180
    assert means[1] < 80
