"""The page in a real browser: no errors, no requests, every plot drawn, at every width and look."""

from __future__ import annotations

import re
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from browser import Browser

from ssm_export.html_report import make_report

PLOTS = """[...document.querySelectorAll('svg.plot')].map(svg => {
  const frame = svg.getBoundingClientRect();
  const marks = [...svg.querySelectorAll('.mark')];
  const boxes = marks.map(mark => mark.getBoundingClientRect());
  const inside = box => box.left >= frame.left - 1 && box.right <= frame.right + 1
    && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
  const words = [...svg.querySelectorAll('text')].map(t => t.getBoundingClientRect());
  const page = document.documentElement.clientWidth;
  return {
    label: svg.getAttribute('aria-label'),
    wide: frame.width, high: frame.height,
    marks: marks.length,
    empty: boxes.filter(box => box.width <= 0 || box.height <= 0).length,
    outside: boxes.filter(box => !inside(box)).length,
    painted: marks.every(mark => {
      const shapes = [mark, ...mark.querySelectorAll('line,rect,path')];
      return shapes.some(s => getComputedStyle(s).fill !== 'none'
        && getComputedStyle(s).fill !== 'rgba(0, 0, 0, 0)');
    }),
    unnamed: marks.filter(mark => !mark.querySelector('title')?.textContent).length,
    letters: parseFloat(getComputedStyle(svg).fontSize) * frame.width / svg.viewBox.baseVal.width,
    words_off_page: words.filter(box => box.left < 0 || box.right > page).length,
  };
})"""
LOOKS = [(390, 844, False), (390, 844, True), (1280, 900, False), (1280, 900, True)]


@pytest.mark.parametrize(("width", "height", "dark"), LOOKS)
def test_it_opens_without_errors_and_draws_every_plot(
    browser: Browser, page: Path, width: int, height: int, dark: bool
) -> None:
    browser.open(page.as_uri(), width=width, height=height, dark=dark)
    plots = browser.evaluate(PLOTS)
    assert len(plots) == page.read_text().count("<svg") >= 14
    for plot in plots:
        assert plot["wide"] > 250, plot
        assert plot["high"] > 40, plot
        assert plot["marks"] > 0, plot
        assert plot["painted"], plot
        assert (plot["empty"], plot["outside"], plot["unnamed"]) == (0, 0, 0), plot
        assert plot["words_off_page"] == 0, plot
        assert plot["letters"] >= 10, plot
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    troubles = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert browser.events_of(*troubles, "Audits.issueAdded") == []
    requests = [event["request"]["url"] for event in browser.events_of("Network.requestWillBeSent")]
    assert requests == [page.as_uri()]


def test_dark_and_light_differ_and_both_can_be_read(browser: Browser, page: Path) -> None:
    """The contrast of text is at least 4.5 to 1 (WCAG AA), of marks at least 3 to 1."""
    grounds = []
    for dark in (False, True):
        browser.open(page.as_uri(), dark=dark)
        card = _luminance(_colour(browser, "figure", "backgroundColor"))
        grounds.append(card)
        for chosen in ("figure td", "figcaption p", ".plot .legend", ".plot .tick", ".rule-name"):
            style = "fill" if "plot" in chosen or "rule" in chosen else "color"
            assert _contrast(card, _luminance(_colour(browser, chosen, style))) >= 4.5, chosen
        for series in range(6):
            value = browser.evaluate(
                f"getComputedStyle(document.documentElement).getPropertyValue('--s{series}')"
            )
            assert _contrast(card, _luminance(_hexadecimal(value))) >= 3, series
    assert grounds[0] > 0.9 > 0.1 > grounds[1]


def test_the_policy_forbids_scripts_and_requests(browser: Browser, page: Path) -> None:
    """What would slip past the escaping still could not run or load: the policy is in force."""
    browser.open(page.as_uri())
    browser.evaluate(
        """(() => {
          const script = document.createElement('script');
          script.textContent = 'window.ran = true';
          document.body.append(script);
          const image = document.createElement('img');
          image.src = 'http://127.0.0.1:9/pixel.png';
          document.body.append(image);
        })()"""
    )
    assert browser.evaluate("window.ran === undefined") is True
    kinds = {event["entry"]["level"] for event in browser.events_of("Log.entryAdded")}
    assert kinds == {"error"}


def test_hostile_names_are_shown_as_text(
    browser: Browser, copied: Path, tmp_path: Path, edit
) -> None:
    evil = "<script>window.hacked=1</script><img src=x onerror=window.hacked=2>\"'&"

    def poison(value: object) -> object:
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return f"{evil}{value}" if isinstance(value, str) else value

    for name in ("bench-onnxruntime.json", "quantize.json", "verify.json"):
        edit(copied / "reports" / name, lambda document: document.update(poison(document)))
    edit(
        copied / "manifest.json",
        lambda document: document.update(family=evil, precision=evil, created=evil),
    )
    folder = copied.rename(tmp_path / "<script>alert(1)<")
    page = tmp_path / "report.html"
    make_report(folder, page)
    browser.open(page.as_uri())
    assert browser.evaluate("window.hacked === undefined") is True
    assert browser.evaluate("document.querySelectorAll('script,img').length") == 0
    assert browser.evaluate("document.querySelector('h1').textContent") == "<script>alert(1)<"
    assert evil in browser.evaluate("document.body.textContent")
    assert browser.events_of("Log.entryAdded", "Runtime.exceptionThrown") == []


def test_it_prints_on_a4_with_no_plot_cut(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri())
    pdf = browser.pdf()
    boxes = re.findall(rb"/MediaBox\s*\[\s*0\s+0\s+([\d.]+)\s+([\d.]+)", _inflated(pdf))
    assert boxes
    for width, height in boxes:
        assert abs(float(width) - 595) < 2
        assert abs(float(height) - 842) < 2
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        uncut = "getComputedStyle(document.querySelector('.plot')).breakInside"
        assert browser.evaluate(uncut) == "avoid"
        assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
        page_height = 1040  # of A4 less the margins, in CSS pixels
        browser.call(
            "Emulation.setDeviceMetricsOverride",
            width=695,  # likewise its width
            height=page_height,
            deviceScaleFactor=1,
            mobile=False,
        )
        heights = browser.evaluate(
            "[...document.querySelectorAll('.plot')].map(p => p.getBoundingClientRect().height)"
        )
        assert max(heights) < page_height
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


def _inflated(pdf: bytes) -> bytes:
    """A PDF with its compressed streams unpacked beside the rest."""
    parts = [pdf]
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        with suppress(zlib.error):
            parts.append(zlib.decompress(stream))
    return b"\n".join(parts)


def _colour(browser: Browser, chosen: str, style: str) -> tuple[float, ...]:
    found = browser.evaluate(f"getComputedStyle(document.querySelector('{chosen}')).{style}")
    return tuple(float(part) for part in re.findall(r"[\d.]+", found)[:3])


def _hexadecimal(value: str) -> tuple[float, ...]:
    digits = value.strip().lstrip("#")
    return tuple(int(digits[at : at + 2], 16) for at in (0, 2, 4))


def _luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance of sRGB, as WCAG 2 defines it."""
    linear = [
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4
        for part in (value / 255 for value in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: float, other: float) -> float:
    high, low = max(one, other), min(one, other)
    return (high + 0.05) / (low + 0.05)
