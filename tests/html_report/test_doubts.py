"""What speaks against a time is said where the time stands; what is predicted says of what."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quantize_report import quality, quantize_document

import ssm_export
from ssm_export.bundle import Bundle
from ssm_export.html_report.doubts import is_elsewhere
from ssm_export.html_report.inputs import Inputs, read_inputs
from ssm_export.html_report.page import document
from ssm_export.html_report.reading import Members
from ssm_export.html_report.sections.quantization import loss_of
from ssm_export.html_report.sections.section import Page
from ssm_export.html_report.verdict import Tile, tiles_of

Edit = Callable[..., None]
BENCH = "reports/bench-onnxruntime.json"


def read(folder: Path) -> Inputs:
    """The reports of a bundle."""
    return read_inputs(Bundle.open(folder, check_hashes=False))


def tile(folder: Path, name: str) -> Tile:
    """The key figure of a name."""
    return next(one for one in tiles_of(Page(read(folder))) if one.name == name)


def cut(text: str, start: str, end: str) -> str:
    """The part of a page from one mark up to another."""
    return text[text.index(start) :].partition(end)[0]


@pytest.mark.parametrize(
    ("telemetry", "badge", "says"),
    [
        ({"throttled": ["SW thermal slowdown"]}, "throttled", "SW thermal slowdown"),
        ({"below_maximum": ["gpu clock 300 MHz"]}, "clocks below maximum", "gpu clock 300 MHz"),
        ({"jetson_clocks": "not locked"}, "clocks not locked", "jetson_clocks"),
    ],
)
def test_a_slowed_device_is_seen_without_opening_anything(
    copied: Path, edit: Edit, telemetry: dict[str, Any], badge: str, says: str
) -> None:
    facts = {"source": "tegrastats", "throttled": [], "below_maximum": [], **telemetry}
    edit(copied / BENCH, lambda d: d.update(telemetry=facts, repeatability={"steady": True}))
    ssm_export.report(copied)
    text = (copied / "reports/report.html").read_text()
    latency = re.sub(r"<details>.*?</details>", "", cut(text, 'id="latency"', "</section>"))
    for part in (cut(text, 'class="verdict', "</header>"), latency):
        assert re.search(rf'class="badge \w+"[^>]*>{badge}<', part)
        assert says in part
    assert [doubt.words for doubt in tile(copied, "decode, batch 1").doubts] == [badge]
    assert f">{badge}<" in cut(text, 'class="tiles"', "</main>").partition("<section")[0]


def test_nothing_is_said_against_an_even_run_of_a_device_that_ran_freely(
    copied: Path, edit: Edit
) -> None:
    facts = {"source": "tegrastats", "throttled": [], "jetson_clocks": "locked"}
    even = {"steady": True, "p50_spread": 0.01}
    edit(copied / BENCH, lambda d: d.update(telemetry=facts, repeatability=even))
    ssm_export.report(copied)
    text = (copied / "reports/report.html").read_text()
    assert 'class="doubts"' not in text
    assert "badge bad" not in text


def test_an_uneven_or_outdated_run_is_marked_at_its_figures(copied: Path, edit: Edit) -> None:
    uneven = {"steady": False, "p50_spread": 2.07}
    edit(copied / BENCH, lambda d: d.update(repeatability=uneven, telemetry=None))
    for name in ("decode, batch 1", "prefill, batch 1"):
        (doubt,) = tile(copied, name).doubts
        assert doubt.words == "not steady"
        assert "207 %" in doubt.says or "210 %" in doubt.says
    edit(copied / BENCH, lambda d: d.update(weights_sha256="0" * 64))
    found = [doubt.words for doubt in tile(copied, "decode, batch 1").doubts]
    assert found == ["outdated", "not steady"]


def test_a_figure_with_many_doubts_shows_the_worst_and_counts_the_rest(
    copied: Path, edit: Edit
) -> None:
    facts = {"throttled": ["hot"], "below_maximum": ["gpu"], "jetson_clocks": "not locked"}
    uneven = {"steady": False, "p50_spread": 0.4}
    edit(copied / BENCH, lambda d: d.update(telemetry=facts, repeatability=uneven))
    ssm_export.report(copied)
    tiles = cut((copied / "reports/report.html").read_text(), 'class="tiles"', "<section")
    shown = re.findall(r'class="badge \w+"[^>]*>([^<]*)<', tiles)
    assert shown == ["throttled", "not steady", "+ 2"] * 2


def test_the_figure_of_decode_is_that_of_depth_0(copied: Path, edit: Edit) -> None:
    def deeper_is_faster(report: dict[str, Any]) -> None:
        for row in report["rows"]:
            if row["phase"] == "decode" and row["batch"] == 1:
                row["tokens_per_s"] = 9999.0 if row["depth"] else 123.0

    edit(copied / BENCH, deeper_is_faster)
    assert tile(copied, "decode, batch 1").number == "123 tok/s"
    edit(copied / BENCH, lambda d: d.update(rows=[r for r in d["rows"] if r["depth"] == 32]))
    assert "after 32 others" in tile(copied, "decode, batch 1").of


def test_shares_of_a_ceiling_name_its_device_and_that_another_was_measured(
    copied: Path, edit: Edit
) -> None:
    def held(report: dict[str, Any]) -> None:
        report["target"] = "jetson-orin-nano"
        for row in report["rows"]:
            row["ceiling_share"] = 0.02

    edit(copied / BENCH, held)
    ssm_export.report(copied)
    latency = cut((copied / "reports/report.html").read_text(), 'id="latency"', "</section>")
    assert ">of the predicted ceiling of jetson-orin-nano</th>" in latency
    assert "of another device than the ceiling: onnxruntime on cpu" in latency
    edit(copied / BENCH, lambda d: d.update(device="cuda", machine={"jetson": "Jetson of mine"}))
    ssm_export.report(copied)
    latency = cut((copied / "reports/report.html").read_text(), 'id="latency"', "</section>")
    assert "of another device" not in latency


KIT = "NVIDIA Jetson Orin Nano Developer Kit, L4T 36.4.0"
CARD = "NVIDIA H200 (compute capability 9.0, 151 GB, CUDA 13.0)"


@pytest.mark.parametrize(
    ("target", "device", "machine", "elsewhere"),
    [
        ("jetson-orin-nano", "cpu", {"jetson": KIT}, True),
        ("jetson-orin-nano", "cuda", {"jetson": KIT}, False),
        ("jetson-orin-nano", "cuda", {"jetson": "A board of mine, L4T 36.4.0"}, False),
        ("jetson-agx-orin", "cuda", {"jetson": KIT}, True),
        ("jetson-orin-nano", "cuda", {"gpu": CARD}, True),
        ("h200", "cuda", {"gpu": CARD}, False),
        ("h200", "cuda", {}, False),
        ("of-another-release", "cuda", {"gpu": CARD}, False),
    ],
)
def test_what_is_surely_another_device(
    measured: Path, target: str, device: str, machine: dict[str, str], elsewhere: bool
) -> None:
    (report,) = read(measured).benched
    report = dataclasses.replace(report, target=target, device=device, machine=machine)
    assert is_elsewhere(report, target) is elsewhere
    assert is_elsewhere(report, "b200")


def without_bytes(made: dict[str, Any]) -> dict[str, Any]:
    """Of rows that are no text."""
    return {**made, "bits_per_byte": None, "lost_bits_per_byte": None}


@pytest.mark.parametrize(
    ("text", "steps", "lost", "name", "of"),
    [
        (True, 1e-4, 0.001, "lost by quantizing, bits per byte", "simulated; worse than the step"),
        (True, 8e-3, 0.002, "lost by quantizing, bits per byte", "KL of the step graph; worse"),
        (True, None, 0.001, "lost by quantizing, bits per byte", "simulated"),
        (False, 1e-4, 5e-4, "KL, bits per token", "from the float model, simulated; worse"),
        (False, 8e-3, 8e-3, "KL, bits per token", "from the float model, step graph; worse"),
        (False, None, 5e-4, "KL, bits per token", "from the float model, simulated"),
    ],
)
def test_a_loss_says_what_is_counted_and_of_which_model(
    text: bool, steps: float | None, lost: float, name: str, of: str
) -> None:
    made = quality(0.001, 5e-4)
    report = quantize_document() | {"lost_bits": lost}
    report["quality"]["quantized"] = made if text else without_bytes(made)
    if steps is None:
        del report["quality"]["step_graph"]
    else:
        shipped = quality(0.002, steps)
        report["quality"]["step_graph"] = shipped if text else without_bytes(shipped)
    found = loss_of(Members(report))
    assert found is not None
    assert (found.name, found.bits) == (name, lost)
    assert found.of.startswith(of)


def test_a_loss_per_token_is_called_kl_on_the_page(copied: Path, edit: Edit) -> None:
    def no_text(report: dict[str, Any]) -> None:
        for name, made in report["quality"].items():
            report["quality"][name] = without_bytes(made)
        report["lost_bits"] = 6e-4

    edit(copied / "reports/quantize.json", no_text)
    assert tile(copied, "KL, bits per token").number == "6.0·10⁻⁴"
    text = document(Page(read(copied)), [])
    assert "lost by quantizing" not in text
    ssm_export.report(copied)
    quantization = cut(
        (copied / "reports/report.html").read_text(), 'id="quantization"', "</section>"
    )
    assert "KL, bits per token: 6.0·10⁻⁴" in quantization
    assert "step graph counts by its KL" in quantization
