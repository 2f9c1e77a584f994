"""The files of a report, read back, and the ones that cannot be written."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import time

import pytest
from toy_bundle import PlainRunner, make_toy_bundle

from ssm_export import errors
from ssm_export.benchmarking import bench
from ssm_export.benchmarking.outputs import check_outputs
from ssm_export.documents.tables import render
from ssm_export.errors import SsmExportError

POWER = "RAM 1/2MB VDD_IN 6000mW/6000mW"


class Slow(PlainRunner):
    """Takes a millisecond and more for each call, so that samples of the power fall into it."""

    def run(self, form, feeds):
        time.sleep(0.001)
        return super().run(form, feeds)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report with power and a prediction, its three files, and its bundle."""
    folder = tmp_path_factory.mktemp("outputs")
    bundle = make_toy_bundle(folder / "toy")
    program = folder / "bin" / "tegrastats"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nwhile :; do echo "{POWER}"; sleep 0.01; done\n')
    program.chmod(0o755)
    files = [folder / f"report.{suffix}" for suffix in ("md", "csv", "json")]
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{program.parent}{os.pathsep}{path}"
    try:
        report = bench(
            bundle,
            runner=Slow(bundle),
            repetitions=5,
            prefill=(16,),
            decode=64,
            depth=(0, 20),
            batch=(1, 2),
            target="jetson-agx-orin",
            outputs=files,
        )
    finally:
        os.environ["PATH"] = path
    return report, files, bundle


def test_energy_is_power_times_time(made):
    """Of a device that takes 6 W all the time, a token that takes a ms takes 6 mJ.

    The energy is of the mean time, which the report has no figure for; it lies between the ends.
    """
    report, _, _ = made
    known = [row for row in report.rows if row.energy_mj_per_token is not None]
    assert any(row.phase == "decode" for row in known)
    for row in known:
        if row.phase == "decode":
            of_all_rows = row.energy_mj_per_token * row.batch
            assert 6 * row.quantiles_ms[4] < of_all_rows < 6 * row.max_ms
    assert report.telemetry["mean_w"] == pytest.approx(6.0)
    assert report.telemetry["power_rail"] == "VDD_IN"


def test_shares_of_the_ceiling_are_of_the_prediction(made):
    from ssm_export.prediction import predict
    from ssm_export.targets import get_target

    report, _, bundle = made
    assert (report.target, report.prediction["predicted"]) == ("jetson-agx-orin", True)
    for row in report.rows:
        if row.phase == "decode":
            ceiling = predict(bundle, get_target("jetson-agx-orin"), batch=row.batch)
            share = row.tokens_per_s / ceiling.decode_tokens_per_s
            assert row.ceiling_share == pytest.approx(share)
        if row.phase == "first token":
            assert row.ceiling_share is None


def test_json_is_the_report(made):
    report, (_, _, file), _ = made
    document = json.loads(file.read_text())
    assert document.pop("schema") == "ssm-export/bench@1"
    assert document == json.loads(json.dumps(report.as_json()))


def test_csv_has_a_line_for_each_row(made):
    report, (_, file, _), _ = made
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == len(report.rows) == 2 * (2 + 2)
    for line, row in zip(rows, report.rows, strict=True):
        assert (line["phase"], int(line["depth"])) == (row.phase, row.depth)
        assert float(line["p50_ms"]) == row.p50_ms
        assert line["cuda_graph"] == ""
        assert (line["gb_per_s"] == "") == (row.phase != "decode")


def test_markdown_has_a_table_with_as_many_cells_in_each_line(made):
    report, (file, _, _), _ = made
    text = file.read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(report.rows)
    assert len({line.count("|") for line in table}) == 1
    assert "mJ/token" in table[0]
    assert "predicted ceiling" in table[0]
    assert re.search(r"Decode after 20 tokens takes \d+\.\d\d× the time", text)


def test_the_table_on_screen_fits_its_columns(made):
    shown = render(made[0].table(), 110)
    table = shown.split("Decode after")[0]
    assert max(len(line) for line in table.splitlines()) <= 110
    for part in ("decode at 20", "first token", "mJ/token", "ceiling", "█"):
        assert part in table
    assert "predicted for jetson-agx-orin, not measured" in shown
    assert "6.0 W" in shown


def test_columns_give_way_where_a_table_would_be_too_wide(made):
    report = made[0]
    rows = tuple(
        dataclasses.replace(row, cuda_graph=False, energy_mj_per_token=12345.6, p50_ms=99999.0)
        for row in report.rows
    )
    shown = render(dataclasses.replace(report, rows=rows).table(), 110)
    table = shown.split("Decode after")[0]
    assert max(len(line) for line in table.splitlines()) <= 110
    for part in ("p50 ms", "max", "tokens/s", "mJ/token", "ceiling", "no graph", "█"):
        assert part in table
    assert "p90" not in table


def test_an_output_is_written_anew(made, tmp_path):
    _, _, bundle = made
    file = tmp_path / "report.csv"
    file.write_text("an older one")
    options = {"prefill": (5,), "decode": 0, "repetitions": 1, "save": False}
    bench(bundle, runner=PlainRunner(bundle), outputs=[file], **options)
    assert file.read_text().startswith("phase,tokens,batch,")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("report.xlsx", errors.BAD_OPTION),
        ("report", errors.BAD_OPTION),
        ("folder.json", errors.BAD_OPTION),
        ("nowhere/report.json", errors.NO_SUCH_PATH),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_first(tmp_path, name, code):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(SsmExportError) as caught:
        check_outputs([tmp_path / "good.md", tmp_path / name])
    assert caught.value.code is code
    assert "--output" in str(caught.value)
