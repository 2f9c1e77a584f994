"""The page's layout, measured in a browser: nothing covers, cuts or hides anything else."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser

from ssm_export.html_report import make_report

SITE = "backbone.layers.{}.mixer.out_proj"
BOXES = """const box = one => one.getBoundingClientRect();
  const meet = (a, b, x, y) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > x &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > y;"""
PAPER = {"width": 695, "height": 1040}
"""A4 less its margins, in CSS pixels."""


@pytest.fixture(scope="module")
def crowded(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with what is hard to set: large numbers, long names, zeros, badges, long tables."""
    folder = Path(shutil.copytree(measured, tmp_path_factory.mktemp("crowded") / "toy"))

    def edit(name: str, change: dict[str, Any]) -> dict[str, Any]:
        file = folder / "reports" / name
        document: dict[str, Any] = json.loads(file.read_text()) | change
        file.write_text(json.dumps(document))
        return document

    telemetry = {
        "source": "tegrastats",
        "throttled": ["SW thermal slowdown in 80% of the samples"],
        "below_maximum": ["gpu clock 300 MHz in the median, the highest is 1300 MHz"],
        "jetson_clocks": "not locked",
        "temperatures": {f"zone {index}": {"max_c": 60.0 + index} for index in range(40)},
    }
    bench = edit("bench-onnxruntime.json", {"telemetry": telemetry, "target": "jetson-orin-nano"})
    for row in bench["rows"]:
        row |= {"ceiling_share": 1.9e-6, "tokens_per_s": row["tokens_per_s"] * 1000}
    edit("bench-onnxruntime.json", {"rows": bench["rows"]})
    verify = edit("verify.json", {})
    for check in verify["checks"]:
        if check["name"] == "drift":
            for point in check["curve"][:2]:
                point["error"] = 0.0
        if check["name"] == "batch rows":
            check["worst"] = check["tolerance"] * 1.9e-6
    edit("verify.json", {"checks": verify["checks"]})
    sites = [
        {"site": SITE.format(n), "what": "weights int4/128", "kl_bits": 1e-5 / (n + 1), "snr_db": 9}
        for n in range(60)
    ]
    edit("quantize.json", {"sensitivities": sites})
    file = folder.parent / "report.html"
    make_report(folder, file, target="b200")
    return file


@contextmanager
def printed(browser: Browser) -> Iterator[None]:
    """The open page as it is on paper."""
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.call("Emulation.setDeviceMetricsOverride", deviceScaleFactor=1, mobile=False, **PAPER)
    try:
        yield
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


WIDER = """[...document.querySelectorAll('.tile')].flatMap(tile => [...tile.children].filter(
  part => part.scrollWidth > part.clientWidth + 1 ||
    part.getBoundingClientRect().right > tile.getBoundingClientRect().right).map(
  part => part.textContent))"""


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_figures_fit_their_tiles(browser: Browser, crowded: Path, width: int) -> None:
    browser.open(crowded.as_uri(), width=width)
    assert any(len(number) > 12 for number in browser.evaluate(NUMBERS))
    assert browser.evaluate(WIDER) == []


NUMBERS = "[...document.querySelectorAll('.tile .number')].map(number => number.textContent)"


def test_figures_fit_their_tiles_on_paper(browser: Browser, crowded: Path) -> None:
    browser.open(crowded.as_uri())
    with printed(browser):
        assert browser.evaluate(WIDER) == []


COVERED = f"""[...document.querySelectorAll('.plot')].flatMap(plot => {{
  {BOXES}
  const names = [...plot.querySelectorAll('.point-name, .rule-name')];
  const others = [...plot.querySelectorAll('.mark')].filter(one => !one.matches('.bar, .spread'));
  const words = [...plot.querySelectorAll('text')];
  const scale = plot.getScreenCTM();
  const onLine = name => [...plot.querySelectorAll('path.curve')].some(path => {{
    const at = box(name), length = path.getTotalLength();
    for (let done = 0; done <= length; done += 1) {{
      const point = path.getPointAtLength(done).matrixTransform(scale);
      if (point.x > at.left && point.x < at.right && point.y > at.top + 2 &&
        point.y < at.bottom - 2) return true;
    }}
    return false;
  }});
  return names.filter(name => onLine(name) ||
    others.some(mark => meet(box(name), box(mark), 1, 2)) ||
    words.some(other => other !== name && meet(box(name), box(other), 1, 3)))
    .map(name => `${{name.textContent}}: ${{plot.getAttribute('aria-label').slice(0, 60)}}`);
}})"""


@pytest.mark.parametrize("width", [375, 768, 1280])
@pytest.mark.parametrize("kind", ["page", "crowded"])
def test_names_in_plots_lie_on_no_mark_line_or_other_words(
    browser: Browser, request: pytest.FixtureRequest, kind: str, width: int
) -> None:
    browser.open(request.getfixturevalue(kind).as_uri(), width=width)
    assert browser.evaluate("document.querySelectorAll('.point-name').length") >= 2
    assert browser.evaluate("document.querySelectorAll('.rule-name').length") >= 2
    assert browser.evaluate(COVERED) == []


@pytest.mark.parametrize("width", [375, 1280])
def test_values_stand_beside_their_plot_and_not_in_it(
    browser: Browser, crowded: Path, width: int
) -> None:
    browser.open(crowded.as_uri(), width=width)
    inside = f"""[...document.querySelectorAll('.plot')].flatMap(plot => {{
      {BOXES}
      const drawn = [...plot.querySelectorAll('.beyond, .mark, .axis')];
      return [...plot.querySelectorAll('.row-value')].filter(
        value => drawn.some(one => meet(box(value), box(one), 0.5, -1))).map(v => v.textContent);
    }})"""
    assert "0.00019 %" in browser.evaluate("document.body.textContent")
    assert browser.evaluate(inside) == []


@pytest.mark.parametrize("width", [320, 375, 1280])
def test_names_in_tables_break_between_their_parts(
    browser: Browser, crowded: Path, width: int
) -> None:
    """Each part of a name is one text; one that was broken has a rectangle on each of two lines."""
    browser.open(crowded.as_uri(), width=width)
    names = "[...document.querySelectorAll('td code, th code')]"
    broken = f"""{names}.flatMap(name => [...name.childNodes]).filter(part => {{
      const range = document.createRange();
      range.selectNodeContents(part);
      return range.getClientRects().length > 1 && !part.textContent.includes('-');
    }}).map(part => part.textContent)"""
    assert browser.evaluate(f"{names}.length") > 60
    assert browser.evaluate(broken) == []


@pytest.mark.parametrize("dark", [False, True])
def test_a_shade_tells_that_a_table_goes_on_sideways(
    browser: Browser, crowded: Path, dark: bool
) -> None:
    browser.open(crowded.as_uri(), width=375, dark=dark)
    browser.evaluate("document.querySelectorAll('table').forEach(t => t.style.opacity = 0)")
    tables = "[...document.querySelectorAll('section > figure .table')]"
    beyond = browser.evaluate(f"{tables}.map(table => table.scrollWidth - table.clientWidth)")
    wide = [f"{tables}[{index}]" for index, pixels in enumerate(beyond) if pixels > 9]
    narrow = [f"{tables}[{index}]" for index, pixels in enumerate(beyond) if pixels == 0]
    assert len(wide) >= 5
    assert len(narrow) >= 5
    for chosen in wide:
        assert _edges(browser, chosen, 0) == (False, True), chosen
        assert _edges(browser, chosen, 9999) == (True, False), chosen
    for chosen in narrow:
        assert _edges(browser, chosen, 0) == (False, False), chosen


def _edges(browser: Browser, chosen: str, left: int) -> tuple[bool, bool]:
    """Whether there is a shade at the left and the right edge of a table's box, scrolled so far."""
    (row,) = _pixels(browser, chosen, left=left, row=20)
    middle = row[len(row) // 2].astype(int)
    edges = [np.abs(part.astype(int) - middle).max() > 12 for part in (row[:6], row[-6:])]
    return bool(edges[0]), bool(edges[1])


@pytest.mark.parametrize("dark", [False, True])
def test_a_long_table_fades_at_its_lower_edge_until_its_end(
    browser: Browser, crowded: Path, dark: bool
) -> None:
    browser.open(crowded.as_uri(), dark=dark)
    assert browser.evaluate("document.querySelectorAll('.table.long').length") >= 2
    browser.evaluate(
        "document.querySelectorAll('.long td').forEach(cell => cell.style.background = '#f0f')"
    )
    chosen = "[...document.querySelectorAll('.table.long')].at(-1)"
    pink = np.array([255, 0, 255])

    def covered(column: np.ndarray) -> list[bool]:
        return [bool(np.abs(pixel.astype(int) - pink).max() > 40) for pixel in column]

    above = covered(_pixels(browser, chosen, column=-20)[:, 0])
    assert all(above[-12:-2])  # the row at the edge has gone
    assert not all(above[-80:-50])  # one further up is there
    end = f"{chosen}.querySelector('tr:last-child td').getBoundingClientRect().bottom"
    below = _pixels(browser, chosen, top=99999, column=-20)[:, 0]
    edge = browser.evaluate(f"{end} - {chosen}.getBoundingClientRect().top")
    assert not any(covered(below[int(edge) - 12 : int(edge) - 4]))  # the last row is bare


def _pixels(
    browser: Browser,
    chosen: str,
    *,
    left: int = 0,
    top: int = 0,
    row: int | None = None,
    column: int | None = None,
) -> np.ndarray:
    """A row or a column of what an element looks like, scrolled so far: (height, width, 3) uint8.
    A negative column counts from the right."""
    browser.evaluate(f"{{ const t = {chosen}; t.scrollLeft = {left}; t.scrollTop = {top}; }}")
    place = browser.evaluate(
        f"(b => ({{x: b.left + scrollX, y: b.top + scrollY, width: b.width, height: b.height}}))"
        f"({chosen}.getBoundingClientRect())"
    )
    clip = {name: round(value) for name, value in place.items()} | {"scale": 1}
    if row is not None:
        clip |= {"y": clip["y"] + row, "height": 1}
    if column is not None:
        clip |= {"x": clip["x"] + column % clip["width"], "width": 1}
    answer = browser.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    return _decoded(base64.b64decode(answer["data"]))


def _decoded(png: bytes) -> np.ndarray:
    """The pixels of a PNG of 8 bits a channel that is not interlaced (ISO/IEC 15948, 9)."""
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    channels = {2: 3, 6: 4}[png[25]]
    data, at = b"", 8
    while at < len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + size]
        at += size + 12
    lines = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + width * channels)
    before = np.zeros((width, channels), np.uint8)
    made = np.empty((height, width, channels), np.uint8)
    for y in range(height):
        kind, line = lines[y, 0], lines[y, 1:].reshape(width, channels)
        made[y] = before = _unfiltered(int(kind), line, before)
    return made[:, :, :3]


def _unfiltered(kind: int, line: np.ndarray, above: np.ndarray) -> np.ndarray:
    if kind == 0:
        return line
    if kind == 1:
        return np.cumsum(line, axis=0, dtype=np.uint8)
    if kind == 2:
        return line + above
    made = np.zeros_like(line).astype(int)
    left = corner = np.zeros(line.shape[1], int)
    for x in range(len(line)):
        up = above[x].astype(int)
        if kind == 3:
            guess = (left + up) // 2
        else:
            rough = left + up - corner
            far = np.abs(np.stack([left, up, corner]) - rough)
            guess = np.choose(far.argmin(axis=0), np.stack([left, up, corner]))
        made[x] = left = (line[x] + guess) % 256
        corner = up
    return made.astype(np.uint8)


def test_on_paper_no_table_scrolls_and_what_belongs_together_stays(
    browser: Browser, crowded: Path
) -> None:
    browser.open(crowded.as_uri())
    with printed(browser):
        hidden = """[...document.querySelectorAll('.table')].filter(table =>
          table.scrollHeight > table.clientHeight + 1 &&
          getComputedStyle(table).overflowY !== 'visible')"""
        assert browser.evaluate(f"{hidden}.length") == 0
        for chosen, style, value in (
            ("h2", "breakAfter", "avoid"),
            ("figcaption", "breakAfter", "avoid"),
            ("h2 + p", "breakAfter", "avoid"),
            ("tbody tr", "breakInside", "avoid"),
            (".table:not(.tall)", "breakInside", "avoid"),
            (".table.tall tbody tr:last-child", "breakBefore", "avoid"),
            ("thead", "display", "table-header-group"),
        ):
            found = f"getComputedStyle(document.querySelector('{chosen}')).{style}"
            assert browser.evaluate(found) == value, chosen


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no pdftotext (poppler-utils) here")
def test_no_page_ends_with_a_heading_or_begins_with_one_row(
    browser: Browser, crowded: Path, tmp_path: Path
) -> None:
    browser.open(crowded.as_uri())
    titles = browser.evaluate(
        "[...document.querySelectorAll('h2, figcaption h3')].map(title => title.textContent)"
    )
    sections = browser.evaluate(
        "[...document.querySelectorAll('section')].map(section => [section.querySelector('h2'),"
        " section.querySelector('h3')].map(title => title.textContent))"
    )
    file = tmp_path / "report.pdf"
    file.write_bytes(browser.pdf())
    text = subprocess.run(
        ["pdftotext", "-layout", file, "-"], check=True, capture_output=True, text=True
    ).stdout
    pages = [[line.strip() for line in page.splitlines() if line.strip()]
             for page in text.split("\f") if page.strip()]  # fmt: skip
    assert len(pages) > 5
    for number, lines in enumerate(pages, 1):
        assert len(lines) > 3, number
        assert lines[-1] not in titles, number
        assert not lines[-1].startswith(("row ", "tensor ", "check ", "output ")), number
    for title, figure in sections:  # a section begins on the page of its first figure
        assert any({title, figure} <= set(lines) for lines in pages), title
    tall = [lines for lines in pages if lines[0].split() == ["tensor", "as", "KL", "bits", "noise"]]
    assert tall  # the long table goes on, and its head is repeated
