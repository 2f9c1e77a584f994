"""Checks a pack, and the machine it lies on, before anything is installed.

``python3 check.py files`` holds every file against ``pack.json``. ``python3 check.py machine`` says
on stderr what is wrong or missing here and prints what ``run.sh`` has to know, as shell variables.
Needs Python 3.8 and its standard library only: an old board is told so by this very script.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

NOT_A_PACK = "SSM-E406"
"""The other codes stand in ``pack.json``, which cannot be read when this one is needed."""
OLDEST_TENSORRT = (10, 3)
AGAIN = "then run it again"


class PackError(Exception):
    """What is wrong and what to do, in the one line that a person reads."""

    def __init__(self, code: str, what: str, fix: str) -> None:
        super().__init__(f"{code}  {what}. Fix: {fix}")
        self.code = code


def read_pack(folder: Path) -> dict:
    """``pack.json`` of a pack."""
    try:
        pack = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
        if pack["schema"] != "ssm-export/pack@1":
            raise ValueError(f"schema {pack['schema']}")
        return pack
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackError(
            NOT_A_PACK,
            f"{folder / 'pack.json'} is missing or damaged ({error})",
            "copy the archive again and unpack all of it",
        ) from error


def check_files(pack: dict, folder: Path) -> None:
    """Every file must be the one that was packed."""
    for entry in pack["files"]:
        file = folder / entry["path"]
        if not file.is_file():
            what = f"{entry['path']} is missing"
        elif file.stat().st_size != entry["bytes"]:
            what = f"{entry['path']} has {file.stat().st_size} bytes, packed were {entry['bytes']}"
        elif _sha256(file) != entry["sha256"]:
            what = f"{entry['path']} is not the file that was packed (its SHA-256 differs)"
        else:
            continue
        raise PackError(
            pack["codes"]["changed"],
            what,
            "copy the archive again (its SHA-256 is what `ssm-export package` printed) and unpack "
            "it into an empty folder",
        )


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while True:
            block = stream.read(1 << 20)
            if not block:
                return digest.hexdigest()
            digest.update(block)


def look() -> dict:
    """What this machine is: the facts that :func:`decide` judges."""
    root = Path(os.environ.get("SSM_EXPORT_CHECK_ROOT", "/"))
    release = root / "etc/nv_tegra_release"
    found = re.search(r"R(\d+)", release.read_text(errors="replace")) if release.is_file() else None
    stat = os.statvfs(".")
    return {
        "machine": _said("uname", "-m"),
        "system": _said("uname", "-s").lower(),
        "python": list(sys.version_info[:2]),
        "venv": _can_import("venv") and _can_import("ensurepip"),
        "jetson_linux": int(found.group(1)) if found else None,
        "memory_bytes": _memory(root),
        "free_bytes": stat.f_bavail * stat.f_frsize,
        "capability": _capability(),
        "tensorrt": _tensorrt(),
        "cmake": bool(shutil.which("cmake") and (shutil.which("c++") or shutil.which("g++"))),
        "headers": any((root / f).is_file() for f in _headers()),
    }


def _said(*command: str) -> str:
    try:
        return (
            subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, check=True
            )
            .stdout.decode(errors="replace")
            .strip()
        )
    except (OSError, subprocess.SubprocessError):
        return ""


def _can_import(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def _memory(root: Path) -> int:
    try:
        found = re.search(r"MemTotal:\s*(\d+) kB", (root / "proc/meminfo").read_text())
        limit = root / "sys/fs/cgroup/memory.max"
        text = limit.read_text().strip() if limit.is_file() else "max"
    except OSError:
        return 0
    total = int(found.group(1)) * 1024 if found else 0
    return min(total, int(text)) if text.isdigit() else total


def _capability() -> list | None:
    """Compute capability of the first GPU, as its driver says it; None where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
            return None
        driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    except (OSError, AttributeError):
        return None
    return [major.value, minor.value]


def _tensorrt() -> str:
    """Version of the TensorRT that the system's Python has; empty where it has none."""
    script = "import tensorrt; print(tensorrt.__version__)"
    return _said(sys.executable, "-c", script).rpartition("\n")[2]


def _headers() -> list:
    folders = ("usr/include/aarch64-linux-gnu", "usr/include/x86_64-linux-gnu", "usr/include")
    return [f"{folder}/NvInfer.h" for folder in folders]


def wrong(pack: dict, here: dict) -> list:
    """Problems that stop the run unless it is forced: another machine than the pack is for."""
    found = []
    codes = pack["codes"]
    if pack["platform"] and f"{here['system']}-{here['machine']}" != pack["platform"]:
        found.append(
            PackError(
                codes["device"],
                f"the pack is for {pack['platform']} ({pack['description']}), this is "
                f"{here['system']}-{here['machine']}",
                f"package the bundle for this machine, or --force to run it on {here['machine']} "
                "with ONNX Runtime",
            )
        )
    majors = sorted({int(release["jetson_linux"].split(".")[0]) for release in pack["jetpack"]})
    if here["jetson_linux"] is not None and here["jetson_linux"] not in majors:
        names = ", ".join(release["release"] for release in pack["jetpack"]) or "no Jetson"
        found.append(
            PackError(
                codes["device"],
                f"this board has Jetson Linux {here['jetson_linux']}, the pack is for JetPack "
                f"{names}",
                "install one of these releases, or package the bundle for this board",
            )
        )
    wanted = pack["compute_capability"]
    have = here["capability"] and ".".join(map(str, here["capability"]))
    if have and wanted not in ("any", have):
        found.append(
            PackError(
                codes["device"],
                f"this GPU has compute capability {have}, the pack is for {wanted} "
                f"({pack['description']})",
                "ssm-export package BUNDLE --target T with the target of this GPU "
                "(ssm-export list targets)",
            )
        )
    engine = pack["engine"] if _reason(pack, here) == "" else "onnxruntime"
    needs = pack["needs"]["memory_bytes"][engine]
    if here["memory_bytes"] and here["memory_bytes"] < needs:
        found.append(
            PackError(
                codes["memory"],
                f"this machine has {here['memory_bytes'] / 1e9:.1f} GB of memory, {engine} is "
                f"predicted to need {needs / 1e9:.1f} GB",
                "quantize the bundle (ssm-export quantize), or add swap and --force",
            )
        )
    return found


def missing(pack: dict, here: dict) -> list:
    """Problems that stop every run."""
    found = []
    codes = pack["codes"]
    oldest, newest = pack["python"]
    version = ".".join(map(str, here["python"]))
    if not oldest <= here["python"] <= newest:
        span = " to ".join(".".join(map(str, one)) for one in (oldest, newest))
        found.append(
            PackError(
                codes["tool"],
                f"{sys.executable} is Python {version}, needed is {span}",
                f"PYTHON=python{'.'.join(map(str, oldest))} ./run.sh; JetPack 5 has none, install "
                "JetPack 6 or later",
            )
        )
    elif not here["venv"]:
        found.append(
            PackError(
                codes["tool"],
                "this Python cannot make environments (no venv or ensurepip)",
                f"sudo apt-get install python3-venv, {AGAIN}",
            )
        )
    needs = pack["needs"]["disk_bytes"]
    if not Path("work/bundle").exists() and here["free_bytes"] < needs:
        found.append(
            PackError(
                codes["memory"],
                f"{here['free_bytes'] / 1e9:.1f} GB are free on this disk, needed are "
                f"{needs / 1e9:.1f} GB",
                f"free some, or unpack on another disk, {AGAIN}",
            )
        )
    return found


def _reason(pack: dict, here: dict) -> str:
    """Why no engine is built here; empty where one is."""
    if here["capability"] is None:
        return "there is no NVIDIA GPU here, or its driver does not run"
    if pack["engine"] == "tensorrt-rtx":
        return ""
    if not here["tensorrt"]:
        how = (
            "sudo apt-get install nvidia-jetpack"
            if pack["jetpack"]
            else (f"{sys.executable} -m pip install tensorrt")
        )
        return f"the Python here has no TensorRT; {how}, {AGAIN}"
    version = tuple(int(part) for part in here["tensorrt"].split(".")[:2])
    if version < OLDEST_TENSORRT:
        return f"TensorRT is {here['tensorrt']} here, 10.3 or later is needed"
    return ""


def decide(pack: dict, here: dict, elsewhere: bool) -> dict:
    """The variables of ``run.sh``. On a machine that is not the pack's, no engine is built."""
    reason = "this is not the machine that the pack is for" if elsewhere else _reason(pack, here)
    engine = "none" if reason else pack["engine"]
    library, lowering = "", "native"
    if engine == "tensorrt" and pack["lowering"] == "plugin":
        lowering, own = "plugin", pack["library"]
        if own and own["tensorrt"].split(".")[0] == here["tensorrt"].split(".")[0]:
            library = str(Path(own["file"]).resolve())
        elif here["cmake"] and here["headers"]:
            library = "build"
        else:
            lowering = "native"
            say(
                "no plugins: the pack has no library for this TensorRT, and what builds one is not "
                f"here. Fix: sudo apt-get install cmake g++ libnvinfer-headers-dev, {AGAIN}"
            )
    return {
        "PACK": _sha256(Path("pack.json"))[:16],
        "TARGET": pack["target"],
        "ENGINE": engine,
        "NO_ENGINE": reason,
        "RUNNER": "onnxruntime" if engine == "none" else engine,
        "LOWERING": lowering,
        "LIBRARY": library,
        "SYSTEM_PACKAGES": "yes" if engine == "tensorrt" else "",
        "VERSIONS": f"python {'.'.join(map(str, here['python']))} tensorrt {here['tensorrt']}",
    }


def say(line: str) -> None:
    """A line for people."""
    print(line, file=sys.stderr)


def main(words: list) -> int:
    """``files`` or ``machine [--force]``, in the folder of the pack."""
    folder = Path()
    try:
        pack = read_pack(folder)
        if words[:1] == ["files"]:
            check_files(pack, folder)
            return 0
        here = look()
        stop, doubts = missing(pack, here), wrong(pack, here)
        forced = "--force" in words
        for problem in stop + doubts:
            say(str(problem))
        if stop or (doubts and not forced):
            if not stop:
                say("./run.sh --force goes on all the same; without TensorRT on another chip")
            return 1
        elsewhere = any(problem.code == pack["codes"]["device"] for problem in doubts)
        for name, value in decide(pack, here, elsewhere).items():
            print(f"{name}={shlex.quote(value)}")
        return 0
    except PackError as problem:
        say(str(problem))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
