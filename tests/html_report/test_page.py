"""The page's contents: what it says of a bundle, of missing, old and broken reports; the file."""

from __future__ import annotations

import html
import json
import math
import re
import stat
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

import ssm_export
from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.cli import group
from ssm_export.cli.running import run
from ssm_export.errors import SsmExportError
from ssm_export.html_report import make_report
from ssm_export.html_report.reading import base_names

Edit = Callable[..., None]


def words_of(page: Path) -> str:
    """The text of a page, tags left out; a place to break at is no space."""
    text = page.read_text().replace("<wbr>", "")
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))


def test_a_bundle_with_every_report_shows_every_section(copied: Path) -> None:
    report = ssm_export.report(copied, target="jetson-orin-nano")
    assert (report.ok, report.verdict, report.target) == (True, "passed", "jetson-orin-nano")
    assert {state for _, state in report.sections} == {"shown"}
    page = copied / "reports/report.html"
    assert (report.path, report.bytes) == (str(page), page.stat().st_size)
    words = words_of(page)
    for said in ("PASSED", "Drift", "predicted", "without rotation", "past_ssm.2", "first token"):
        assert said in words


def test_the_same_bundle_gives_the_same_bytes(measured: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_report(measured, tmp_path / name, target="h100")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nothing_is_loaded_and_no_folder_is_told(measured: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    make_report(measured, page)
    text = page.read_text()
    assert "default-src 'none'" in html.unescape(text)
    assert not re.search(r"<(script|img|link|iframe|object|embed|base)\b", text)
    assert not re.search(r"(url\(|@import|https?:)", text)
    for folder in ("/home/somebody", str(measured.parent), "held out.txt/"):
        assert folder not in text
    assert "held out.txt: 4096 tokens" in words_of(page)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/a/model", "model"),
        ("/home/a b/my model", "my model"),
        ("/data/held.txt: 4096 tokens", "held.txt: 4096 tokens"),
        ("read from /data/x/held.txt, twice", "read from held.txt, twice"),
        (r"C:\Users\me\model", "model"),
        ("~/models/mamba", "mamba"),
        ("state-spaces/mamba-130m", "state-spaces/mamba-130m"),
        ("12 tokens/s and 3/4", "12 tokens/s and 3/4"),
        ("element/gate", "element/gate"),
        ("https://example.org/a/b", "https://example.org/a/b"),
    ],
)
def test_paths_are_cut_to_names_and_nothing_else_is(text: str, shown: str) -> None:
    assert base_names(text) == shown


def test_missing_reports_are_named_with_their_commands(copied: Path) -> None:
    for file in (copied / "reports").glob("*.json"):
        file.unlink()
    report = ssm_export.report(copied)
    assert (report.ok, report.verdict, report.target) == (True, "not verified", None)
    commands = {command for _, command in report.missing}
    assert {"ssm-export verify toy", "ssm-export bench toy"} <= commands
    words = words_of(copied / "reports/report.html")
    assert "NOT VERIFIED" in words
    assert all(command in words for command in commands)
    (copied / "reports/report.html").unlink()
    (copied / "reports").rmdir()
    assert ssm_export.report(copied).ok


OF_NOW = (
    "max_ms",
    "jitter_ms",
    "depth",
    "cuda_graph",
    "quantiles_ms",
    "energy_mj_per_token",
    "ceiling_share",
    "p50_low_ms",
    "p50_high_ms",
    "p50_spread",
)


def test_reports_of_an_earlier_release_still_give_a_page(copied: Path, edit: Edit) -> None:
    def older(document: dict) -> None:
        for member in (
            "telemetry",
            "repeatability",
            "prediction",
            "target",
            "notes",
            "blocks",
            "weights_sha256",
            "comparison",
        ):
            document.pop(member, None)
        document["rows"] = [
            {key: value for key, value in row.items() if key not in OF_NOW}
            for row in document["rows"]
            if row["phase"] != "first token"
        ]

    def without_curve(document: dict) -> None:
        del document["outputs"]
        for check in document["checks"]:
            check.pop("curve", None)

    edit(copied / "reports/bench-onnxruntime.json", older)
    edit(copied / "reports/verify.json", without_curve)
    report = ssm_export.report(copied)
    assert report.ok
    wanted = {what for what, _ in report.missing}
    assert {"decode at depth", "error per output and per layer"} <= wanted
    assert any("--bisect" in command for _, command in report.missing)
    assert "earlier release" in words_of(copied / "reports/report.html")


BROKEN = {
    "empty": b"",
    "cut short": b'{"ok": true, "rows": [',
    "no object": b"[1, 2]",
    "not text": b"\xff\xfe\x00",
    "wrong kind": b'{"runner": 3}',
    "rows of nothing": b'{"runner": "r", "rows": [{"phase": "decode"}]}',
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_report_is_named_and_the_page_is_made_without_it(
    copied: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "reports/bench-broken.json").write_bytes(content)
    assert run(group, ["report", str(copied), "--json"]) == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["schema"] == "ssm-export/report@1"
    assert document["error"]["code"] == errors.BAD_REPORT.code
    assert [one["file"] for one in document["unreadable"]] == ["reports/bench-broken.json"]
    assert "bench-broken.json" in captured.err.splitlines()[-2]
    assert captured.err.splitlines()[-1].startswith("FAILED")
    words = words_of(copied / "reports/report.html")
    assert "bench-broken.json" in words
    assert "PASSED" in words  # the others are there


@pytest.mark.parametrize("name", ["verify.json", "quantize.json"])
def test_every_kind_of_report_may_be_broken(copied: Path, name: str) -> None:
    (copied / "reports" / name).write_text('{"ok": true}')
    (copied / "effective_config.yaml").write_text("a: [")
    report = ssm_export.report(copied)
    assert set(report.unreadable) == {f"reports/{name}", "effective_config.yaml"}


@pytest.mark.parametrize(
    "change",
    [
        {"size": {"before": {"weights_file": []}}},
        {"mixed": {"choices": "x"}},
        {"sensitivities": [{"kl_bits": 1.0}]},
        {"lost_bits": "much"},
    ],
)
def test_a_member_of_a_wrong_kind_makes_a_report_unreadable(
    copied: Path, edit: Edit, change: dict
) -> None:
    edit(copied / "reports/quantize.json", lambda document: document.update(change))
    report = ssm_export.report(copied)
    assert set(report.unreadable) == {"reports/quantize.json"}
    assert "reports/quantize.json" in words_of(copied / "reports/report.html")


def test_a_failed_check_is_the_verdict(copied: Path, edit: Edit) -> None:
    def fail(document: dict) -> None:
        document["ok"] = False
        document["checks"][0] |= {"ok": False, "status": "failed", "worst": None}
        document["outputs"][0] |= {"ok": False, "error": None}

    edit(copied / "reports/verify.json", fail)
    assert ssm_export.report(copied).verdict == "failed"
    words = words_of(copied / "reports/report.html")
    assert "FAILED verify on onnxruntime did not pass: logits" in words
    assert "PASSED" not in words
    assert "past_conv.0 departs first" in words


def test_a_report_of_other_files_proves_nothing(copied: Path, edit: Edit) -> None:
    def other(document: dict) -> None:
        document["files"]["onnx/weights.data"] = "0" * 64

    edit(copied / "reports/verify.json", other)
    assert ssm_export.report(copied).verdict == "not verified"


def test_changed_weights_are_no_longer_verified(copied: Path) -> None:
    file = copied / "onnx/weights.data"
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content)
    assert ssm_export.report(copied).verdict == "not verified"
    assert "onnx/weights.data" in words_of(copied / "reports/report.html")


def test_points_of_the_roofline_are_the_work_over_the_time(copied: Path, edit: Edit) -> None:
    """By hand: decode multiplies every weight but the embedding's once for each row; it reads each
    number of the graph, of the embedding a row, and reads and writes every state."""
    sizes = Bundle.open(copied).manifest.sizes
    layer = sizes["M"] * sizes["D"] * 2 + sizes["K"] * sizes["D"] + 3 * sizes["D"] * sizes["N"]
    table = sizes["M"] * sizes["V"]
    weights = sizes["L"] * layer + table
    edit(copied / "manifest.json", lambda d: d["sizes"].update(parameters=weights + table))
    states = sizes["L"] * ((sizes["K"] - 1) * sizes["D"] + sizes["D"] * sizes["N"]) * 4
    graph = onnx.load(copied / "onnx/step.onnx", load_external_data=False).graph
    stored = sum(
        math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in graph.initializer
    )
    picked = 4 * sizes["L"] * (sizes["K"] - 1) * sizes["D"]  # the toy gathers its taps by rows
    moved = stored - picked - 4 * table + 4 * sizes["M"] + 2 * states
    bench = json.loads((copied / "reports/bench-onnxruntime.json").read_text())
    row = next(r for r in bench["rows"] if r["phase"] == "decode" and r["batch"] == 1)
    rate = 2 * weights / (row["p50_ms"] / 1e3)
    ssm_export.report(copied, target="h100")
    text = (copied / "reports/report.html").read_text()
    found = re.search(
        r'<th scope="row">decode</th><td>onnxruntime on cpu</td>'
        r'<td class="number">([\d.]+)</td><td class="number">([\d.]+)</td>',
        text,
    )
    assert found is not None
    assert float(found[1]) == pytest.approx(2 * weights / moved, rel=0.005)
    assert float(found[2]) == pytest.approx(rate / 1e9, rel=0.005)
    hollow = re.findall(r'class="mark s1 hollow"><title>([^<]*)', text)
    assert hollow
    assert all("predicted" in title for title in hollow)
    assert all(
        "measured" in title for title in re.findall(r'class="mark s0"><title>(decode: [^<]*)', text)
    )


def test_the_target_of_a_bench_is_taken(copied: Path, edit: Edit) -> None:
    edit(copied / "reports/bench-onnxruntime.json", lambda d: d.update(target="jetson-agx-orin"))
    assert ssm_export.report(copied).target == "jetson-agx-orin"
    edit(copied / "reports/bench-onnxruntime.json", lambda d: d.update(target="of-another-release"))
    assert ssm_export.report(copied).target is None


def refused(code: errors.ErrorCode, *arguments: object, **options: object) -> SsmExportError:
    with pytest.raises(SsmExportError) as raised:
        ssm_export.report(*arguments, **options)  # type: ignore[arg-type]
    assert raised.value.code is code
    return raised.value


def test_bad_input_is_refused_and_writes_nothing(measured: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(errors.NOT_A_BUNDLE, tmp_path)
    refused(errors.NO_SUCH_PATH, tmp_path / "nothing")
    refused(errors.UNKNOWN_TARGET, measured, tmp_path / "a.html", target="jetson-orin-nanoo")
    error = refused(errors.NO_SUCH_PATH, measured, tmp_path / "nowhere" / "a.html")
    assert "mkdir" in error.fix
    refused(errors.NO_SUCH_PATH, measured, tmp_path / "file" / "a.html")
    refused(errors.BAD_OPTION, measured, tmp_path)
    refused(errors.NO_PERMISSION, measured, "/proc/report.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_an_older_page_is_replaced_whole(measured: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("older")
    make_report(measured, page)
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert page.read_text().endswith("</html>\n")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert page.stat().st_mode & stat.S_IRUSR


def test_the_verb_says_what_it_made(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    words = ["report", str(measured), "-o", str(page), "--target", "h100", "--json"]
    assert run(group, words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "ssm-export/report@1"
    assert (document["path"], document["bytes"]) == (str(page), page.stat().st_size)
    assert [one["name"] for one in document["sections"]] == [
        "source",
        "parity",
        "drift",
        "latency",
        "roofline",
        "memory",
        "quantization",
        "versions",
    ]
    assert document["missing"] == []
    assert run(group, ["report", str(measured), "-o", str(page)]) == 0
    assert "page.html" in capsys.readouterr().out
