"""run.sh and check.py as they come out of a pack: damage, other machines, and going on.

No Jetson and no GPU is here: boards are played by the facts that the check reads (a `uname` and
files of another machine), and what a board would then install and run by a stand-in interpreter.
The whole way with real packages is at the end, in an environment without torch.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssm_export import errors
from ssm_export.packaging import pack

PARTS = pack.BOARD
BOARD = "jetson-agx-orin"

STAND_IN = """
log() { echo "$@" >>"$JOURNAL"; }
if [ "$1 $2" = "-m venv" ]; then
    for last; do :; done
    mkdir -p "$last/bin"
    cat >"$last/bin/python" <<'END'
#!/bin/sh
echo "pip $*" >>"$JOURNAL"
[ ! -e "$BREAK.pip" ]
END
    cat >"$last/bin/ssm-export" <<'END'
#!/bin/sh
echo "$*" >>"$JOURNAL"
[ "$1" = report ] && echo report >"$4"
echo "table of $1"
[ ! -e "$BREAK.$1" ]
END
    chmod +x "$last/bin/python" "$last/bin/ssm-export"
    log venv
else
    exec REAL "$@"
fi
"""
"""An interpreter whose environments only write down what is asked of them."""


@pytest.fixture
def stand_in(tmp_path, programs):
    """Environment variables of a run whose packages are stand-ins."""
    # Nothing here loses its power, and others write to this disk too.
    path = programs(python3=STAND_IN.replace("REAL", sys.executable), sync="exit 0")
    return {
        "PATH": path,
        "PYTHON": "python3",
        "JOURNAL": str(tmp_path / "journal"),
        "BREAK": str(tmp_path / "break"),
    }


def journal(tmp_path) -> list[str]:
    """The verbs that were called since the last look."""
    file = tmp_path / "journal"
    words = [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []
    file.unlink(missing_ok=True)
    return words


VERBS = ["doctor", "verify", "bench", "report"]


def test_all_steps_in_order_and_none_twice(unpacked, run_sh, stand_in, tmp_path):
    folder = unpacked("rtx-any")
    done = run_sh(folder, **stand_in)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("PASSED")
    assert "skipped: the engine: there is no NVIDIA GPU" in done.stdout
    assert "table of bench" in done.stdout
    assert journal(tmp_path) == ["venv", "pip", *VERBS]
    again = run_sh(folder, **stand_in)
    assert again.returncode == 0
    assert journal(tmp_path) == []
    assert "bench: done before" in again.stdout
    assert run_sh(folder, "--again", **stand_in).returncode == 0
    assert journal(tmp_path) == ["venv", "pip", *VERBS]


@pytest.mark.parametrize("broken", ["pip", *VERBS])
def test_after_a_failure_it_goes_on_where_it_was(unpacked, run_sh, stand_in, tmp_path, broken):
    folder = unpacked("rtx-any")
    (tmp_path / f"break.{broken}").touch()
    failed = run_sh(folder, **stand_in)
    assert failed.returncode == 1
    assert failed.stdout.splitlines()[-1].startswith("FAILED")
    name = "environment" if broken == "pip" else broken
    assert f"work/logs/{name}.log" in failed.stdout
    first = journal(tmp_path)
    assert first[-1] == broken
    (tmp_path / f"break.{broken}").unlink()
    assert run_sh(folder, **stand_in).returncode == 0
    rest = VERBS[VERBS.index(broken) :] if broken in VERBS else ["venv", "pip", *VERBS]
    assert journal(tmp_path) == rest


def test_a_board_that_loses_power_goes_on(unpacked, run_sh, stand_in, tmp_path):
    """Killed in the middle of verify, with half of a stamp on the disk."""
    folder = unpacked("rtx-any")
    (tmp_path / "break.verify").touch()
    run_sh(folder, **stand_in)
    journal(tmp_path)
    (tmp_path / "break.verify").unlink()
    (folder / "work/done/verify.part").write_text("123")
    (folder / "work/done/verify").write_text("")
    (folder / "work/bundle/manifest.json").unlink()  # and the copy of the bundle is not whole
    assert run_sh(folder, **stand_in).returncode == 0
    assert journal(tmp_path) == ["verify", "bench", "report"]
    assert (folder / "work/bundle/manifest.json").is_file()


def test_another_pack_in_the_same_place_begins_anew(unpacked, run_sh, stand_in, tmp_path):
    folder = unpacked("rtx-any")
    run_sh(folder, **stand_in)
    journal(tmp_path)
    index = json.loads((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(json.dumps(index | {"notes": ["made again"]}))
    assert run_sh(folder, **stand_in).returncode == 0
    assert journal(tmp_path) == ["venv", "pip", *VERBS]


def test_two_at_a_time_are_one_too_many(unpacked, run_sh, stand_in, tmp_path):
    if shutil.which("flock") is None:
        pytest.skip("no flock")
    folder = unpacked("rtx-any")
    (folder / "work").mkdir()
    holder = subprocess.Popen(["flock", str(folder / "work/lock"), "sleep", "30"])
    try:
        time.sleep(0.3)
        done = run_sh(folder, **stand_in)
    finally:
        holder.kill()
        holder.wait()
    assert done.returncode == 1
    assert "another run.sh" in done.stdout
    assert journal(tmp_path) == []


def refused(done, code: errors.ErrorCode) -> str:
    """What a run that was refused says; the code is the command line's own."""
    assert done.returncode in (1, 3)
    assert done.stdout.splitlines()[-1].startswith("FAILED")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("SSM-E")]
    assert line.startswith(code.code)
    assert ". Fix: " in line
    return line


@pytest.mark.parametrize("damage", ["changed", "shorter", "missing"])
def test_a_damaged_file_is_named_before_anything_is_done(
    unpacked, run_sh, stand_in, tmp_path, damage
):
    folder = unpacked("rtx-any")
    weights = folder / "bundle/onnx/weights.data"
    content = weights.read_bytes()
    weights.unlink()
    if damage == "changed":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "shorter":
        weights.write_bytes(content[:-1])
    line = refused(run_sh(folder, **stand_in), errors.PACK_CHANGED)
    assert "bundle/onnx/weights.data" in line
    assert not (folder / "work").exists()
    assert journal(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "ssm-export/pack@9"}'])
def test_a_pack_without_its_list(unpacked, run_sh, stand_in, text):
    folder = unpacked("rtx-any")
    (folder / "pack.json").write_text(text)
    assert "pack.json" in refused(run_sh(folder, **stand_in), errors.NOT_A_PACK)


def test_a_pack_for_another_processor(unpacked, run_sh, stand_in, programs, tmp_path):
    folder = unpacked(BOARD)
    programs(uname="case $1 in -m) echo riscv64;; *) echo Linux;; esac")
    line = refused(run_sh(folder, **stand_in), errors.WRONG_DEVICE)
    assert "linux-aarch64" in line
    assert "linux-riscv64" in line
    assert journal(tmp_path) == []
    forced = run_sh(folder, "--force", **stand_in)
    assert forced.returncode == 0
    assert "skipped: the engine: this is not the machine" in forced.stdout


def test_a_jetson_with_an_old_jetpack_or_little_memory(
    unpacked, run_sh, stand_in, programs, tmp_path
):
    programs(uname="case $1 in -m) echo aarch64;; *) echo Linux;; esac")
    board = tmp_path / "board"
    (board / "etc").mkdir(parents=True)
    (board / "proc").mkdir()
    release = "# R{} (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"
    folder = unpacked(BOARD)
    (board / "proc/meminfo").write_text("MemTotal:       64000000 kB\n")
    (board / "etc/nv_tegra_release").write_text(release.format(36))
    here = {**stand_in, "SSM_EXPORT_CHECK_ROOT": str(board)}
    assert run_sh(folder, **here).returncode == 0
    (board / "etc/nv_tegra_release").write_text(release.format(35))
    assert "JetPack 6.1, 6.2, 7" in refused(run_sh(folder, **here), errors.WRONG_DEVICE)
    (board / "etc/nv_tegra_release").write_text(release.format(36))
    (board / "proc/meminfo").write_text("MemTotal:       200000 kB\n")
    line = refused(run_sh(folder, **here), errors.TOO_LITTLE_MEMORY)
    assert "0.2 GB of memory" in line
    forced = run_sh(folder, "--force", **here)
    assert "no NVIDIA GPU" in forced.stdout  # which is why there is no engine, and not the memory


FACTS = {
    "machine": "aarch64",
    "system": "linux",
    "python": [3, 10],
    "venv": True,
    "jetson_linux": 36,
    "memory_bytes": 64e9,
    "free_bytes": 100e9,
    "capability": [8, 7],
    "tensorrt": "10.3.0",
    "cmake": True,
    "headers": True,
}
"""An AGX Orin with JetPack 6.2."""


@pytest.fixture
def orin(unpacked, monkeypatch) -> dict:
    """pack.json of a board whose graphs hold plugins, with the library for its TensorRT."""
    folder = unpacked(BOARD)
    monkeypatch.chdir(folder)
    index = json.loads((folder / "pack.json").read_text())
    library = {"file": "plugin/library.so", "tensorrt": "10.3.0"}
    return index | {"lowering": "plugin", "library": library}


def test_the_board_itself(check, orin):
    assert check.wrong(orin, FACTS) == []
    assert check.missing(orin, FACTS) == []
    chosen = check.decide(orin, FACTS, elsewhere=False)
    assert chosen["ENGINE"] == chosen["RUNNER"] == "tensorrt"
    assert (chosen["LOWERING"], chosen["SYSTEM_PACKAGES"]) == ("plugin", "yes")
    assert chosen["LIBRARY"].endswith("/plugin/library.so")


def test_jetpack_7_has_another_python_and_is_as_good(check, orin):
    seven = {**FACTS, "python": [3, 12], "jetson_linux": 39, "tensorrt": "10.16.1"}
    assert check.wrong(orin, seven) == check.missing(orin, seven) == []
    assert check.decide(orin, seven, elsewhere=False)["LOWERING"] == "plugin"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"capability": [7, 2]}, errors.WRONG_DEVICE, "compute capability 7.2"),
        ({"jetson_linux": 35}, errors.WRONG_DEVICE, "Jetson Linux 35"),
        ({"machine": "x86_64"}, errors.WRONG_DEVICE, "linux-x86_64"),
        ({"memory_bytes": 1e4}, errors.TOO_LITTLE_MEMORY, "memory"),
        ({"free_bytes": 1e6}, errors.TOO_LITTLE_MEMORY, "disk"),
        ({"python": [3, 8]}, errors.MISSING_TOOL, "Python 3.8"),
        ({"python": [3, 14]}, errors.MISSING_TOOL, "Python 3.14"),
        ({"venv": False}, errors.MISSING_TOOL, "python3-venv"),
    ],
)
def test_what_keeps_a_board_from_it(check, orin, change, code, words):
    here = {**FACTS, **change}
    (found,) = check.wrong(orin, here) + check.missing(orin, here)
    assert str(found).startswith(code.code)
    assert words in str(found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tensorrt": ""}, "nvidia-jetpack"),
        ({"tensorrt": "8.5.2"}, "8.5.2"),
        ({"capability": None}, "no NVIDIA GPU"),
    ],
)
def test_what_leaves_the_engine_out_and_nothing_else(check, orin, change, words):
    here = {**FACTS, **change}
    assert check.wrong(orin, here) == check.missing(orin, here) == []
    chosen = check.decide(orin, here, elsewhere=False)
    assert words in chosen["NO_ENGINE"]
    assert (chosen["ENGINE"], chosen["RUNNER"]) == ("none", "onnxruntime")


def test_a_library_for_another_tensorrt_is_built_there_or_done_without(check, orin, capsys):
    eleven = {**FACTS, "tensorrt": "11.1.0"}
    assert check.decide(orin, eleven, elsewhere=False)["LIBRARY"] == "build"
    without = check.decide(orin, {**eleven, "headers": False}, elsewhere=False)
    assert (without["LIBRARY"], without["LOWERING"]) == ("", "native")
    assert "libnvinfer-headers-dev" in capsys.readouterr().err


def test_its_one_own_code_is_the_command_lines(check):
    assert errors.NOT_A_PACK.code == check.NOT_A_PACK


def test_the_check_parses_in_the_oldest_python_it_is_for(check):
    import ast

    ast.parse(Path(check.__file__).read_text(), feature_version=(3, 8))


def test_run_sh_is_plain_sh():
    dash = shutil.which("dash") or "/bin/sh"
    subprocess.run([dash, "-n", str(PARTS / "run.sh")], check=True)
    assert (PARTS / "run.sh").read_text().startswith("#!/bin/sh\n")


def test_it_calls_verbs_and_options_that_there_are():
    """Every call of run.sh, parsed by the command line."""
    from ssm_export.cli import command_of

    values = {"TARGET": BOARD, "ENGINE": "tensorrt", "LOWERING": "plugin", "RUNNER": "onnxruntime"}
    text = re.sub(r'"?\$\{?(\w+)[^" }]*\}?"?', lambda m: values.get(m[1], ""),
                  (PARTS / "run.sh").read_text())  # fmt: skip
    calls = [line.split() for line in re.findall(r"must \w+ verb (.*)", text)]
    assert [words[0] for words in calls] == ["doctor", "build", "verify", "bench", "report"]
    for verb, *words in calls:
        command_of(verb).make_context(verb, words)


@pytest.mark.slow
def test_from_a_pack_to_passed_and_through_an_interruption(tmp_path, run_sh):
    """The demo model, real packages, no torch; killed while it installs, then run again.

    Two minutes are the promise, without downloads. They are counted in time of processors, which
    other work on this machine does not change: 30 s, when the clock said 36 s on an idle one.
    """
    import tarfile

    import ssm_export

    checkpoint = Path(__file__).resolve().parents[2] / "samples/train_demo/mamba2-bytes"
    ssm_export.export(checkpoint, tmp_path / "bundle", parity="quick", lowering="ort")
    ssm_export.package(tmp_path / "bundle", tmp_path / "demo.tar", target="rtx-any")
    with tarfile.open(tmp_path / "demo.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    folder = tmp_path / "demo"
    environment = {**os.environ, "PYTHON": sys.executable}
    first = subprocess.Popen(
        [str(folder / "run.sh")], env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    log = folder / "work/logs/environment.log"
    limit = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size) and time.monotonic() < limit:
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (folder / "work/done/environment").exists()

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_sh(folder, SSM_EXPORT_BENCH="--prefill 128 --decode 16")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    if done.returncode and re.search(
        r"No matching distribution|Connection|Temporary failure", log.read_text() + done.stderr
    ):
        pytest.skip("pip cannot install packages here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("PASSED")
    assert seconds < 120
    installed = {entry.name for entry in (folder / "work/env").glob("lib/python*/site-packages/*")}
    assert "onnxruntime" in installed
    assert not {name for name in installed if name.split("-")[0] in ("torch", "transformers")}
    assert (folder / "work/report.html").stat().st_size > 1000
    assert "environment: done before" in run_sh(folder).stdout
