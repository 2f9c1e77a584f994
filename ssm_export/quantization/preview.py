"""What a quantization would do, from its recipe and the graphs: nothing is run, nothing written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from ssm_export.documents import tables
from ssm_export.quantization.corpus import open_corpus
from ssm_export.quantization.mixed import candidate_rules
from ssm_export.quantization.number_formats import SCHEMES
from ssm_export.quantization.plan import WeightKey, rotations, scale_type, weight_keys
from ssm_export.quantization.recipe import FLOAT, Rule
from ssm_export.quantization.tensors import PER_TENSOR

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ssm_export.progress import Progress
    from ssm_export.quantization.job import Job
    from ssm_export.quantization.sites import ScanSite, WeightSite

_LAYER: Final = re.compile(r"(?<=\.layers\.)\d+(?=\.)")
_BY_MEASURE: Final = "by sensitivity"


@dataclass(frozen=True)
class PlannedTensors:
    """Tensors of all layers that become the same.

    Attributes:
        tensors: their name, with ``*`` for the layer.
        count: how many there are.
        weights: what becomes of their weights, in words; empty for a scan's input.
        inputs: what becomes of their input, or of themselves where they are a scan's input.
        before, after: bytes of their weights; None after where measuring decides.
    """

    tensors: str
    count: int
    weights: str
    inputs: str
    before: int
    after: int | None


@dataclass(frozen=True)
class QuantizePreview:
    """What :func:`planned` found.

    Attributes:
        source: folder of the float bundle.
        recipe: as :meth:`~ssm_export.quantization.recipe.Recipe.as_json` gives it.
        target: the device that it is for; empty for any.
        state_before, state_after: type of the states.
        data: what would be calibrated with.
        groups: what becomes of every tensor, in graph order.
        weights_before, weights_after: bytes of the weights file; after is a prediction, at most so
            much for a recipe with a size budget, and None where only measuring tells.
        notes: what had to be taken instead of what the recipe says.
    """

    source: str
    recipe: dict[str, Any]
    target: str
    state_before: str
    state_after: str
    data: str
    groups: tuple[PlannedTensors, ...]
    weights_before: int
    weights_after: int | None
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The members of the ``ssm-export/quantize@1`` document of a dry run."""
        members = asdict(self)
        source, recipe = members.pop("source"), members.pop("recipe")
        return {"ok": True, "bundle": None, "source": source, "recipe": recipe, "plan": members}

    def table(self) -> RenderableType:
        """The plan for a terminal."""
        return _tables(self)


def planned(job: Job, progress: Progress) -> QuantizePreview:
    """What a checked job would do.

    Args:
        job: of :func:`~ssm_export.quantization.quantizer.prepare`.
        progress: shows bars where data is read.

    Raises:
        SsmExportError: ``BAD_CALIBRATION`` for data that cannot be used.
    """
    sites, manifest = job.sites, job.source.manifest
    keys, notes = weight_keys(job.rules, sites, job.blocks)
    mixed = job.recipe.mixed
    measured = candidate_rules(job.rules, sites, mixed) if mixed is not None else {}
    scales = scale_type(manifest.precision).itemsize
    turned = rotations(job.rules, sites)
    groups: dict[tuple[str, ...], list[tuple[int, int | None]]] = {}
    for site in sites.weights:
        rule, key = job.rules.get(site.name, Rule(())), keys.get(site.name)
        before = _float_bytes(job, site)
        if site.name in measured and mixed is not None:
            words, after = f"{' or '.join(mixed.candidates)}, {_BY_MEASURE}", None
        else:
            words = FLOAT if key is None else _weights(key)
            after = before if key is None else stored_bytes(site.shape, key, scales)
        inputs = _inputs(rule, turned.get(site.name, 0))
        groups.setdefault((_general(site.name), words, inputs), []).append((before, after))
    for scan in sites.scans:
        inputs = _scan(job.rules.get(scan.name, Rule(())), scan)
        groups.setdefault((_general(scan.name), "", inputs), []).append((0, 0))
    found = tuple(
        PlannedTensors(name, len(sizes), words, inputs, sum(b for b, _ in sizes), _total(sizes))
        for (name, words, inputs), sizes in groups.items()
    )
    data, more = _data(job, progress)
    return QuantizePreview(
        source=str(job.source.path),
        recipe=job.recipe.as_json(),
        target=job.target.name if job.target is not None else "",
        state_before=manifest.state_dtype,
        state_after=job.state_dtype,
        data=data,
        groups=found,
        weights_before=manifest.weights.bytes,
        weights_after=_weights_after(job, found),
        notes=(*notes, *more),
    )


def stored_bytes(shape: tuple[int, int], key: WeightKey, scale_bytes: int) -> int:
    """Bytes of codes and scales of a weight (K,N) or (V,M), known before anything is rounded.

    Args:
        shape: of the weight.
        key: how it is rounded.
        scale_bytes: of one scale; those of ``nvfp4`` have 1 byte and a global scale of 4.
    """
    scheme, count = SCHEMES[key.scheme], math.prod(shape)
    codes = (count * scheme.bits + 7) // 8
    if key.scheme in PER_TENSOR:
        return codes + scale_bytes
    if key.block:
        scales = count // key.block
        return codes + (scales + 4 if key.scheme == "nvfp4" else scales * scale_bytes)
    outputs = shape[0] if _is_vocabulary(key.site) else shape[1]
    return codes + outputs * scale_bytes


def _is_vocabulary(name: str) -> bool:
    return _LAYER.search(name) is None


def _float_bytes(job: Job, site: WeightSite) -> int:
    tensor = job.graphs["prefill"].graph.initializers[site.weight].const_value
    assert tensor is not None
    return tensor.nbytes


def _weights_after(job: Job, groups: Iterable[PlannedTensors]) -> int | None:
    """The file as it is, with the weights of the plan in the place of the float ones."""
    groups, mixed = list(groups), job.recipe.mixed
    rest = job.source.manifest.weights.bytes - sum(group.before for group in groups)
    if mixed is None:
        return rest + sum(group.after or 0 for group in groups)
    if mixed.size is None:
        return None
    in_fp16 = 2 * sum(math.prod(site.shape) for site in job.sites.weights)
    return rest + math.floor(mixed.size * in_fp16)


def _total(sizes: Iterable[tuple[int, int | None]]) -> int | None:
    after = [size for _, size in sizes if size is not None]
    return sum(after) if after else None


def _general(name: str) -> str:
    return _LAYER.sub("*", name)


def _weights(key: WeightKey) -> str:
    words = [key.scheme]
    if key.block:
        words.append(f"blocks of {key.block}")
    elif key.scheme in PER_TENSOR:
        words.append("one scale")
    else:
        words.append("a scale per row" if _is_vocabulary(key.site) else "a scale per column")
    words += ["GPTQ"] if key.rounding == "gptq" else []
    words += ["clipped"] if key.clip == "mse" else []
    return ", ".join(words)


def _inputs(rule: Rule, rotate: int) -> str:
    words = [rule.activations]
    if rule.activations != FLOAT:
        words += _clip(rule)
    words += [f"rotated in blocks of {rotate}"] if rotate else []
    return ", ".join(words)


def _scan(rule: Rule, site: ScanSite) -> str:
    if rule.activations == FLOAT:
        return FLOAT
    words = [rule.activations, *_clip(rule)]
    heads, channels = rule.grouping
    if (heads, channels) != (0, 0):
        count = site.groups * heads * channels
        words.append(f"at most {count} scales" if count > 1 else "one scale")
    return ", ".join(words)


def _clip(rule: Rule) -> list[str]:
    if rule.clip == "percentile":
        return [f"{rule.percentile:g} % of the values"]
    return ["least squared error"] if rule.clip == "mse" else []


def _data(job: Job, progress: Progress) -> tuple[str, tuple[str, ...]]:
    """What would be calibrated with, and notes; files that are given are read and checked."""
    options, wanted = job.options, job.recipe.calibration
    if options.calibration is None and options.evaluation is None:
        sequences = options.sequences or wanted.sequences
        tokens = options.tokens or wanted.tokens
        what = f"the model writes up to {sequences} rows of {tokens} tokens itself"
        return what, ("better: --calibration FILE with text like that which it will see",)
    if options.calibration is None:
        return f"the model writes its own rows; held out: {options.evaluation}", ()
    corpus = open_corpus(job, progress)
    rows, tokens = corpus.calibration.ids.shape
    held = corpus.evaluation
    what = f"{rows} rows of {tokens} tokens of {corpus.calibration.source}; "
    return f"{what}held out: {held.ids.size} tokens of {held.source}", corpus.notes


def _tables(preview: QuantizePreview) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    rows = [
        (
            tables.plain(group.tensors),
            str(group.count),
            tables.plain(group.weights or "–"),
            tables.plain(group.inputs),
            tables.size(group.before) if group.before else "–",
            _size(group.after) if group.before else "–",
        )
        for group in preview.groups
    ]
    heads = ("tensors", "count>", "weights", "input", "float>", "quantized>")
    recipe: Mapping[str, Any] = preview.recipe
    title = f"dry run, nothing was written: {recipe['name']}: {recipe['description']}"
    after, most = preview.weights_after, "at most " if recipe["mixed"] else ""
    lines = [f"weights file: {tables.size(preview.weights_before)}"]
    if after is not None:
        share = after / max(preview.weights_before, 1)
        lines[0] += f" → {most}{tables.size(after)}, × {share:.3f} (predicted)"
    lines.append(f"states: {preview.state_before} → {preview.state_after}")
    lines += [f"for {preview.target}"] if preview.target else []
    lines.append(f"calibration: {preview.data}")
    parts: list[RenderableType] = [
        tables.table(title, heads, rows),
        Text("\n".join(lines), style="dim"),
    ]
    parts += [Text(f"note: {note}", style="yellow") for note in preview.notes]
    return Group(*parts)


def _size(count: int | None) -> str:
    return _BY_MEASURE if count is None else tables.size(count)
