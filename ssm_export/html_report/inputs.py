"""What a page is made from: the manifest and every report of the bundle, read once and checked.

A report that is not there is None or absent; one that cannot be read is named in ``unreadable``.
Reports of earlier releases lack members of later ones: those are None or empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from ssm_export.bundle import Bundle
from ssm_export.errors import SsmExportError
from ssm_export.html_report.reading import (
    Malformed,
    Members,
    base_names,
    finite,
    read_json,
    without_paths,
)

Read = TypeVar("Read")
QUANTIZE: Final = "reports/quantize.json"
"""Where the report of quantize lies in a bundle."""


@dataclass(frozen=True)
class Check:
    """A check of verify; ``worst`` is None where it was not run or is not finite."""

    name: str
    status: str
    worst: float | None
    tolerance: float | None
    measure: str
    where: str
    detail: str
    curve: tuple[tuple[int, float | None, str], ...]

    @property
    def share(self) -> float | None:
        """Of its gate; 0 where both are 0, None where it is not finite or beyond a gate of 0."""
        if self.worst is None or self.tolerance is None:
            return None
        if self.tolerance > 0:
            return self.worst / self.tolerance
        return 0.0 if self.worst == 0 else None


@dataclass(frozen=True)
class TensorError:
    """The worst error of one tensor; ``error`` is None where it is not finite."""

    run: str
    tensor: str
    layer: int
    measure: str
    error: float | None
    tolerance: float
    ok: bool


@dataclass(frozen=True)
class Verified:
    """A report of verify."""

    file: str
    ok: bool
    runner: str
    device: str
    lowering: str
    against: str
    runtime: dict[str, str]
    files: dict[str, str]
    checks: tuple[Check, ...]
    outputs: tuple[TensorError, ...]
    layers: tuple[TensorError, ...]


@dataclass(frozen=True)
class Row:
    """One measurement of bench; what older reports lack is None."""

    phase: str
    tokens: int
    batch: int
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    jitter_ms: float | None
    tokens_per_s: float | None
    gb_per_s: float | None
    samples: int
    pieces: int
    depth: int | None
    cuda_graph: bool | None
    quantiles_ms: tuple[float, ...]
    energy_mj_per_token: float | None
    ceiling_share: float | None

    def quantile(self, probability: float) -> float | None:
        """The time that this share of the calls took at most."""
        if self.quantiles_ms:
            place = probability * (len(self.quantiles_ms) - 1)
            low = int(place)
            high = min(low + 1, len(self.quantiles_ms) - 1)
            part = place - low
            return self.quantiles_ms[low] * (1 - part) + self.quantiles_ms[high] * part
        known = {0.5: self.p50_ms, 0.9: self.p90_ms, 0.99: self.p99_ms, 1.0: self.max_ms}
        return known.get(probability)


@dataclass(frozen=True)
class Benched:
    """A report of bench."""

    file: str
    runner: str
    device: str
    lowering: str
    rows: tuple[Row, ...]
    weights_per_token: float | None
    states_per_row: float | None
    peak_memory: float | None
    peak_since: str
    repetitions: int
    warmup: int
    threads: int | None
    machine: dict[str, str]
    runtime: dict[str, str]
    created: str
    target: str
    steady: bool | None
    p50_spread: float | None
    telemetry: dict[str, Any]
    weights: str
    slower: bool
    notes: tuple[str, ...]

    @property
    def place(self) -> str:
        """Runner and device in words."""
        return f"{self.runner} on {self.device}"


@dataclass(frozen=True)
class Inputs:
    """Everything that a page is made from.

    Attributes:
        bundle: the open bundle; its hashes may not hold, see ``changed``.
        name: of its folder.
        manifest: as JSON, without paths of a machine.
        verified: reports of verify; that of the default name first.
        benched: reports of bench, by name.
        quantized: the report of quantize, or None; its members are read where they are shown.
        config: ``effective_config.yaml`` as section, option, value.
        unreadable: file to the reason why it cannot be read.
        changed: what is wrong with the files that the manifest names; empty when nothing is.
    """

    bundle: Bundle
    name: str
    manifest: dict[str, Any]
    verified: tuple[Verified, ...] = ()
    benched: tuple[Benched, ...] = ()
    quantized: Members | None = None
    config: tuple[tuple[str, str, str], ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)
    changed: str = ""


def read_inputs(bundle: Bundle) -> Inputs:
    """Read a bundle's reports. Hashes every file of the manifest; raises nothing for a report."""
    unreadable: dict[str, str] = {}
    reports = bundle.path / "reports"

    def read(path: Path, make: Callable[[Any, str], Read]) -> Read | None:
        name = path.relative_to(bundle.path).as_posix()
        try:
            return make(read_json(path), name)
        except Malformed as reason:
            unreadable[base_names(name)] = str(reason)
            return None

    def all_of(pattern: str, make: Callable[[Any, str], Read]) -> tuple[Read, ...]:
        found = sorted(reports.glob(pattern), key=lambda path: (len(path.name), path.name))
        made = [read(path, make) for path in found]
        return tuple(one for one in made if one is not None)

    quantize = bundle.path / QUANTIZE
    return Inputs(
        bundle=bundle,
        name=bundle.path.resolve().name,
        manifest=without_paths(_manifest(bundle)),
        verified=all_of("verify*.json", _verified),
        benched=all_of("bench-*.json", _benched),
        quantized=read(quantize, _quantized) if quantize.is_file() else None,
        config=_config(bundle.path / "effective_config.yaml", unreadable),
        unreadable=unreadable,
        changed=_changed(bundle),
    )


def _manifest(bundle: Bundle) -> dict[str, Any]:
    import json

    document: dict[str, Any] = json.loads(bundle.manifest.to_json())
    return document


def _changed(bundle: Bundle) -> str:
    try:
        bundle.check_hashes()
    except SsmExportError as error:
        return error.what
    except OSError as error:
        return f"a file cannot be read ({error.strerror})"
    return ""


def _verified(document: Any, file: str) -> Verified:
    members = Members(document)
    return Verified(
        file=file,
        ok=members.flag("ok") is True,
        runner=members.text("runner"),
        device=members.text("device", ""),
        lowering=members.text("lowering", ""),
        against=members.text("against", ""),
        runtime=members.facts("runtime"),
        files=members.facts("files"),
        checks=tuple(_check(one) for one in members.objects("checks")),
        outputs=tuple(_tensor(one) for one in members.objects("outputs")),
        layers=tuple(_tensor(one) for one in members.objects("layers")),
    )


def _check(one: Members) -> Check:
    return Check(
        name=one.text("name"),
        status=one.text("status"),
        worst=one.number("worst"),
        tolerance=one.number("tolerance"),
        measure=one.text("measure", ""),
        where=one.text("where", ""),
        detail=one.text("detail", ""),
        curve=tuple(
            (point.whole("steps"), point.number("error"), point.text("tensor", ""))
            for point in one.objects("curve")
            if point.whole("steps") > 0
        ),
    )


def _tensor(one: Members) -> TensorError:
    return TensorError(
        run=one.text("run", ""),
        tensor=one.text("tensor"),
        layer=one.whole("layer"),
        measure=one.text("measure"),
        error=one.number("error"),
        tolerance=one.needed("tolerance"),
        ok=one.flag("ok") is True,
    )


def _benched(document: Any, file: str) -> Benched:
    members = Members(document)
    moved, repeated = members.child("bytes_per_token"), members.child("repeatability")
    target = document.get("target")
    return Benched(
        file=file,
        runner=members.text("runner"),
        device=members.text("device", ""),
        lowering=members.text("lowering", ""),
        rows=tuple(_row(one) for one in members.objects("rows")),
        weights_per_token=moved.number("weights"),
        states_per_row=moved.number("states_per_row"),
        peak_memory=members.number("peak_memory_bytes"),
        peak_since=members.text("peak_memory_since", ""),
        repetitions=members.whole("repetitions", 0),
        warmup=members.whole("warmup", 0),
        threads=members.whole("threads") if "threads" in members else None,
        machine=members.facts("machine"),
        runtime=members.facts("runtime"),
        created=members.text("created", ""),
        target=_target_name(target),
        steady=repeated.flag("steady"),
        p50_spread=repeated.number("p50_spread"),
        telemetry=members.tree("telemetry"),
        weights=members.text("weights_sha256", ""),
        slower=members.flag("ok") is False,
        notes=tuple(str(words) for words in members.items("notes")),
    )


def _target_name(target: Any) -> str:
    if isinstance(target, dict):
        target = target.get("name")
    return target if isinstance(target, str) else ""


def _row(one: Members) -> Row:
    times = [
        finite(value) if isinstance(value, (int, float)) else None
        for value in one.items("quantiles_ms")
    ]
    known = tuple(value for value in times if value is not None and value > 0)
    p50 = one.needed("p50_ms")
    if p50 <= 0 or not one.whole("tokens") or not one.whole("batch"):
        raise Malformed("a row has no tokens, no batch or no time")
    return Row(
        phase=one.text("phase"),
        tokens=one.whole("tokens"),
        batch=one.whole("batch"),
        p50_ms=p50,
        p90_ms=one.number("p90_ms"),
        p99_ms=one.number("p99_ms"),
        max_ms=one.number("max_ms"),
        jitter_ms=one.number("jitter_ms"),
        tokens_per_s=one.number("tokens_per_s"),
        gb_per_s=one.number("gb_per_s"),
        samples=one.whole("samples", 0),
        pieces=one.whole("pieces", 1),
        depth=one.whole("depth") if "depth" in one else None,
        cuda_graph=one.flag("cuda_graph"),
        quantiles_ms=known if len(known) == len(times) else (),
        energy_mj_per_token=one.number("energy_mj_per_token"),
        ceiling_share=one.number("ceiling_share"),
    )


def _quantized(document: Any, _file: str) -> Members:
    members = Members(document)
    quality = members.child("quality")
    for name in ("float", "quantized"):
        if name not in quality:
            raise Malformed(f"quality.{name} is missing")
    return members


def _config(path: Path, unreadable: dict[str, str]) -> tuple[tuple[str, str, str], ...]:
    if not path.is_file():
        return ()
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        unreadable[path.name] = "not readable as YAML"
        return ()
    if not isinstance(document, dict):
        unreadable[path.name] = "holds no sections"
        return ()
    rows: list[tuple[str, str, str]] = []
    for section, options in without_paths(document).items():
        pairs = options.items() if isinstance(options, dict) else [("", options)]
        rows += [(str(section), str(name), _written(value)) for name, value in pairs]
    return tuple(rows)


def _written(value: Any) -> str:
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)
