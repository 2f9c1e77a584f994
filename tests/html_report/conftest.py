"""A toy bundle with reports that verify and bench really wrote, and a browser if there is one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser
from quantize_report import quantize_document
from toy_bundle import make_toy_bundle

from ssm_export.benchmarking import bench
from ssm_export.html_report import make_report
from ssm_export.verification import verify


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a report of every stage; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("report") / "toy"
    bundle = make_toy_bundle(folder)
    assert verify(bundle).ok
    bench(
        bundle, prefill=(4, 16, 64), decode=16, batch=(1, 2), depth=(0, 32), repetitions=5, warmup=1
    )
    (folder / "reports/quantize.json").write_text(json.dumps(quantize_document()))
    return folder


@pytest.fixture(scope="session")
def page(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the bundle that has everything."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    make_report(measured, file, target="jetson-orin-nano")
    return file


@pytest.fixture
def copied(measured: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(measured, tmp_path / "toy"))


@pytest.fixture
def edit() -> Callable[..., None]:
    """``edit(file, change)``: change a JSON file in place."""

    def run(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
        document = json.loads(file.read_text())
        change(document)
        file.write_text(json.dumps(document))

    return run


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; the test is skipped where there is none."""
    program = find_browser()
    if program is None:
        pytest.skip("no chromium or google-chrome here, and CHROMIUM names none")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
