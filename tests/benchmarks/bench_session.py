"""What a session adds to its runner, and what handing states around costs.

Contestants take turns within one run, each for a few tokens at a time, so the ratios hold although
the machine may be noisy. Every figure is a median.

    python tests/benchmarks/bench_session.py                    # mamba-130m and mamba2-130m
    python tests/benchmarks/bench_session.py --states           # states of the 2.8b shapes
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench_models import RESULTS, THREADS, machine, random_checkpoint, run_export, show

BURST = 4
"""Tokens of one turn."""
SHAPES = {
    "mamba-2.8b": (64, {"conv": (3, 5120), "ssm": (5120, 16)}),
    "mamba2-2.7b": (64, {"conv": (3, 5120 + 2 * 128), "ssm": (80, 64, 128)}),
}
"""Layers and fp32 states of the published configurations."""


def main() -> None:
    """Run the chosen benchmark, print a table, and write it to ``results/``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", action="append", help="a published size; may be repeated")
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--keep", metavar="FOLDER", help="keep bundles there, and use those there")
    parser.add_argument("--states", action="store_true", help="fork, restore, save, load")
    parser.add_argument("--write", action="store_true", help="write to results/")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    name = "session-decode"
    with tempfile.TemporaryDirectory() as temporary:
        if options.states:
            name = "session-states"
            rows = [measure_states(size, Path(temporary), options.repetitions) for size in SHAPES]
        else:
            for size in options.size or ["mamba-130m", "mamba2-130m"]:
                folder = Path(options.keep or temporary) / size / "float"
                if not folder.exists():
                    folder.parent.mkdir(parents=True, exist_ok=True)
                    checkpoint, _ = random_checkpoint(size, folder.parent, None)
                    run_export(checkpoint, folder, "--parity", "quick", "--lowering", "ort")
                rows.append(measure_decode(size, folder, options.repetitions))
    show(rows)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        command = " ".join(word for word in sys.argv if word not in ("--keep", options.keep))
        document = {"machine": machine(), "command": command, "rows": rows}
        (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")


def measure_decode(size: str, folder: Path, repetitions: int) -> dict[str, Any]:
    """Milliseconds of a token: the runtime alone, our runner, a session, and bound buffers."""
    from ssm_export import Bundle, Session
    from ssm_export.engines import Recurrent, open_runner
    from ssm_export.engines._ort_device import DeviceRunner

    bundle = Bundle.open(folder)
    runner = open_runner(bundle, threads=THREADS)
    model = Recurrent(bundle, runner)
    one = np.array([[5]])
    session = Session(bundle, runner=runner)
    bound = DeviceRunner(bundle, "onnxruntime", threads=THREADS, device="cpu")
    bound.load_state(model.initial_state(1))
    state = model.initial_state(1)

    def bare() -> None:
        nonlocal state
        _, state = model.step(one, state)

    bare()
    contestants: dict[str, Callable[[], object]] = {
        "runner": bare,
        "session": lambda: session.step(one),
        "alternating_buffers": lambda: bound.advance("step", one),
        "one_buffer": InPlace(runner, bundle),
    }
    row: dict[str, Any] = {"size": size, **in_bursts(contestants, repetitions)}
    row["session_adds"] = row["session_over_runner"] - 1
    row |= own_time(bundle, runner, repetitions)
    row["own_share"] = row["session_own_us"] / row["runner_ms"] / 1e3
    session.close()
    bound.close()
    runner.close()
    return row


def own_time(bundle: Any, runner: Any, repetitions: int) -> dict[str, float]:
    """Microseconds that a session's own code takes for a token: a step of the same states through
    a session, less the same without one, where the runner answers at once."""
    from ssm_export import Session
    from ssm_export.engines import Recurrent

    at_once = AtOnce(runner)
    model = Recurrent(bundle, at_once)
    session = Session(bundle, runner=at_once)
    one = np.array([[5]])
    state = model.initial_state(1)
    calls = {"without": lambda: model.step(one, state), "with": lambda: session.step(one)}
    calls["with"]()
    row = in_bursts(
        {name: lambda c=call: [c() for _ in range(50)] for name, call in calls.items()}, repetitions
    )
    return {"session_own_us": (row["with_ms"] - row["without_ms"]) / 50 * 1e3}


class AtOnce:
    """A runner that gives the outputs of one real step again and again."""

    def __init__(self, runner: Any) -> None:
        self.info = runner.info
        self._runner = runner
        self._outputs: Any = None

    def run(self, form: str, feeds: Any) -> Any:
        if self._outputs is None:
            self._outputs = self._runner.run(form, feeds)
        return self._outputs

    def close(self) -> None:
        pass


class InPlace:
    """The step graph with one buffer for past and present, which ONNX Runtime does not allow for:
    only its time is of interest."""

    def __init__(self, runner: Any, bundle: Any) -> None:
        import onnxruntime

        from ssm_export.engines import Recurrent

        self._session = runner._session("step")
        self._binding = self._session.io_binding()
        self._binding.bind_cpu_input("input_ids", np.array([[5]]))
        self._kept = []
        for name, array in Recurrent(bundle, runner).initial_state(1).items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array.copy())
            self._kept.append(value)
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(name.replace("past_", "present_"), value)

    def __call__(self) -> None:
        self._binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(self._binding)


def in_bursts(contestants: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median milliseconds of one call by contestant, and of its ratio to the first, burst by
    burst; who begins changes."""
    names = list(contestants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for call in contestants.values():
        call()
    for turn in range(repetitions):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            began = time.perf_counter()
            for _ in range(BURST):
                contestants[name]()
            times[name].append((time.perf_counter() - began) * 1e3 / BURST)
    row = {f"{name}_ms": float(np.median(values)) for name, values in times.items()}
    base = np.array(times[names[0]])
    for name in names[1:]:
        row[f"{name}_over_{names[0]}"] = float(np.median(np.array(times[name]) / base))
    return row


def measure_states(size: str, folder: Path, repetitions: int) -> dict[str, Any]:
    """Milliseconds to fork, restore, save and load a state of a published size, page cache warm."""
    from ssm_export import State
    from ssm_export.bundle import Bundle, FileEntry, Manifest, StateSpec
    from ssm_export.engines.runner import Recurrent
    from ssm_export.state import Owner

    layers, kinds = SHAPES[size]
    states = tuple(
        StateSpec(
            f"past_{kind}.{i}", f"present_{kind}.{i}", kind, i, ("batch", *shape), "float32", ""
        )
        for i in range(layers)
        for kind, shape in kinds.items()
    )
    manifest = Manifest(
        source={},
        family=size.split("-")[0],
        sizes={"V": 50280},
        precision="fp32",
        state_dtype="fp32",
        logits="last",
        ragged=False,
        states=states,
        graphs={},
        lowering={},
        weights=FileEntry("", 0, ""),
    )
    bundle = Bundle(folder, manifest)
    rng = np.random.default_rng(0)
    arrays = {
        spec.name_in: rng.standard_normal((1, *spec.shape[1:]), dtype=np.float32) for spec in states
    }
    logits = rng.standard_normal((1, 50280), dtype=np.float32)
    state = State(Owner.of(manifest), arrays, logits, np.array([1000]), (0,))
    file = folder / f"{size}.state"
    state.save(file)
    runner = Reader()
    session = session_of(bundle, runner)
    calls: dict[str, Callable[[], object]] = {
        "fork_to_4": lambda: state.fork(4),
        "restore": lambda: session.restore(state),
        "load_and_restore": lambda: session.restore(State.load(file, bundle)),
        "restore_4_forks": lambda: session.restore(state.fork(4)),
        "save": lambda: state.save(file),
    }
    found: dict[str, Any] = {"size": size, "megabytes": state.bytes_per_row / 1e6}
    for name, call in calls.items():
        times = []
        for _ in range(max(3, repetitions // 4)):
            began = time.perf_counter()
            call()
            times.append((time.perf_counter() - began) * 1e3)
        found[f"{name}_ms"] = float(np.median(times))
    back = State.load(file, bundle)
    assert all(np.array_equal(back.stored[name], array) for name, array in arrays.items())
    assert Recurrent(bundle, runner).states == states
    return found


class Reader:
    """A runner that is never run: handing states in and out is what is measured."""

    def __init__(self) -> None:
        from ssm_export.engines.runner import RunnerInfo

        self.info = RunnerInfo("none", {}, "cpu", "none")

    def run(self, form: str, feeds: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass


def session_of(bundle: Any, runner: Any) -> Any:
    """A session of a bundle that has no files."""
    from ssm_export import Session

    return Session(bundle, runner=runner)


if __name__ == "__main__":
    main()
