"""The Python API: one function per verb of the command line, under the same name.

Each takes what its verb takes and gives a report with ``as_json()``. Modules are imported when a
function is called, so a board without torch can import this file and use what it can run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssm_export import errors
from ssm_export.bundle import Bundle
from ssm_export.errors import SsmExportError, missing_package
from ssm_export.progress import SILENT, Progress

if TYPE_CHECKING:
    from ssm_export.benchmarking import BenchReport
    from ssm_export.engines.doctor import DoctorReport
    from ssm_export.engines.tensorrt import BuildReport
    from ssm_export.exporter import ExportReport
    from ssm_export.generation import Generation
    from ssm_export.html_report import HtmlReport
    from ssm_export.inspection import InspectReport
    from ssm_export.kernel_pack import KernelsReport
    from ssm_export.packaging import PackReport, RepositoryReport
    from ssm_export.quantization.preview import QuantizePreview
    from ssm_export.quantization.report import QuantizeReport
    from ssm_export.verification import Reference, VerifyReport

PathLike = str | os.PathLike[str]


def export(
    checkpoint: PathLike,
    output: PathLike,
    *,
    precision: str = "auto",
    state_dtype: str = "fp32",
    lowering: str = "auto",
    target: str | None = None,
    ragged: bool = False,
    logits: str = "last",
    parity: str = "auto",
    verify: bool = True,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> ExportReport:
    """Export a checkpoint into a new, verified bundle. Needs torch.

    Args:
        checkpoint: folder (transformers or mamba_ssm layout) or hub id.
        output: the bundle to make; it must not exist.
        precision: ``auto`` (fp16 for a target, fp32 without one), ``fp32``, ``fp16``, ``bf16``.
        state_dtype: ``fp32`` or ``fp16``.
        lowering: ``auto``, ``canonical``, ``native``, ``ort`` or ``plugin``.
        target: the device it is for, a name of ``list targets``: chooses precision and kernels,
            and what it will do there is predicted; a model that cannot fit is refused.
        ragged: graphs take ``sequence_lengths (B,)``.
        logits: ``last`` or ``all``.
        parity: ``auto``, ``quick`` or ``full``: how much is recorded for later checks.
        verify: whether the graphs must pass before the bundle appears.
        dry_run: check checkpoint and options, write nothing.
        progress: shows bars.
    """
    try:
        from ssm_export import exporter
    except ModuleNotFoundError as error:
        raise missing_package(error.name or "torch", "export", "export") from error
    options = exporter.ExportOptions(
        precision=precision,
        state_dtype=state_dtype,
        lowering=lowering,
        target=target,
        ragged=ragged,
        logits=logits,
        parity=parity,
        verify=verify,
    )
    return exporter.export(checkpoint, output, options, dry_run=dry_run, progress=progress)


def quantize(
    bundle: PathLike | Bundle,
    output: PathLike,
    *,
    recipe: PathLike = "w8a16",
    calibration: PathLike | None = None,
    evaluation: PathLike | None = None,
    target: str | None = None,
    state_dtype: str | None = None,
    sequences: int | None = None,
    tokens: int | None = None,
    ablation: bool = False,
    sensitivity: bool | None = None,
    long_drift: bool = False,
    verify: bool = True,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> QuantizeReport | QuantizePreview:
    """Quantize a float bundle into a new, verified bundle, and measure what that cost.

    Args:
        bundle: the float bundle or its folder; it is only read.
        output: the bundle to make; it must not exist.
        recipe: a name of ``list recipes``, or a YAML file.
        calibration: text, token ids, recorded inputs, or a quantized bundle whose data and
            statistics are taken again; the model writes its own text when None.
        evaluation: held-out data; the end of the calibration data when None.
        target: the device that it is for: what it cannot compute with is refused.
        state_dtype: ``fp32``, ``fp16`` or ``int8``; the recipe's choice when None.
        sequences: rows of calibration; the recipe's when None.
        tokens: of a row; the recipe's when None.
        ablation: also measure the recipe with each of its steps left out.
        sensitivity: measure every tensor alone; done where it takes minutes at most when None.
        long_drift: also decode 65 536 tokens, whatever it takes.
        verify: whether the graphs must pass, and the loss be within the recipe's limit.
        dry_run: give a preview of what would become of every tensor, and write nothing.
        progress: shows bars.
    """
    from ssm_export.bundle import refuse_existing
    from ssm_export.quantization import quantizer

    options = quantizer.QuantizeOptions(
        recipe=os.fspath(recipe),
        calibration=None if calibration is None else os.fspath(calibration),
        evaluation=None if evaluation is None else os.fspath(evaluation),
        target=target,
        state_dtype=state_dtype,
        sequences=sequences,
        tokens=tokens,
        ablation=ablation,
        sensitivity=sensitivity,
        long_drift=long_drift,
        verify=verify,
    )
    if dry_run:
        from ssm_export.quantization.preview import planned

        refuse_existing(output)
        return planned(quantizer.prepare(_open(bundle), options), progress)
    return quantizer.quantize(_open(bundle), output, options, progress=progress)


def kernels(
    path: PathLike,
    *,
    target: str,
    output: PathLike | None = None,
    ptx: bool = False,
    progress: Progress = SILENT,
) -> KernelsReport:
    """Compile the GPU kernels of a bundle or a graph. Needs Triton, and no GPU.

    Args:
        path: the bundle's folder, or an ONNX graph that calls operators of ours.
        target: a name of ``ssm-export list targets``.
        output: a file for the kernel images, replacing older ones; none is written when None.
        ptx: add PTX, which drivers of later GPUs can compile.
        progress: shows bars.
    """
    from ssm_export.kernel_pack import compile_kernels

    return compile_kernels(path, target, output=output, ptx=ptx, progress=progress)


def build(
    bundle: PathLike | Bundle,
    *,
    target: str = "rtx-any",
    engine: str | None = None,
    lowering: str | None = None,
    max_batch: int = 8,
    max_chunk: int = 1024,
    progress: Progress = SILENT,
) -> BuildReport:
    """Build TensorRT engines of both graphs into the bundle. TensorRT-RTX builds need no GPU.

    Args:
        bundle: the bundle or its folder.
        target: a name of ``ssm-export list targets``.
        engine: ``tensorrt-rtx`` or ``tensorrt``; what the target runs when None.
        lowering: ``native``, or ``plugin`` for scans as nodes of our plugin library (``tensorrt``
            only); plugins where they can be had when None.
        max_batch: largest batch of the optimization profile.
        max_chunk: most tokens of one prefill call; longer prompts are fed in pieces.
        progress: shows bars.
    """
    from ssm_export.engines.tensorrt import build as build_engines

    return build_engines(
        _open(bundle),
        target,
        engine=engine,
        lowering=lowering,
        max_batch=max_batch,
        max_chunk=max_chunk,
        progress=progress,
    )


def verify(
    bundle: PathLike | Bundle,
    *,
    runner: str = "onnxruntime",
    lowering: str | None = None,
    against: str = "parity",
    checkpoint: PathLike | None = None,
    checks: Sequence[str] | None = None,
    bisect: bool = False,
    progress: Progress = SILENT,
) -> VerifyReport:
    """Hold the graphs of a bundle against the truth.

    Args:
        bundle: the bundle or its folder.
        runner: ``onnxruntime``, ``onnxruntime-cuda``, ``tensorrt`` or ``tensorrt-rtx``.
        lowering: the bundle's default when None.
        against: ``parity`` (recorded vectors, no torch), ``torch`` or ``transformers``.
        checkpoint: where the weights are, for the last two; the bundle's source when None.
        checks: names of checks; all when None.
        bisect: add the error of every layer.
        progress: shows bars.
    """
    from ssm_export.verification import verify as verify_bundle

    opened = _open(bundle)
    if against == "parity":
        return verify_bundle(
            opened,
            runner=runner,
            lowering=lowering,
            checks=checks,
            bisect=bisect,
            progress=progress,
        )
    with _reference(opened, against, checkpoint) as reference:
        return verify_bundle(
            opened,
            runner=runner,
            lowering=lowering,
            against=against,
            reference=reference,
            checks=checks,
            bisect=bisect,
            progress=progress,
        )


def bench(
    bundle: PathLike | Bundle,
    *,
    runner: str = "onnxruntime",
    lowering: str | None = None,
    prefill: Sequence[int] = (128, 1024),
    decode: int = 64,
    depth: Sequence[int] = (0,),
    batch: Sequence[int] = (1,),
    threads: int | None = None,
    repetitions: int | None = None,
    cuda_graph: str | None = None,
    target: str | None = None,
    outputs: Sequence[PathLike] = (),
    baseline: PathLike | None = None,
    progress: Progress = SILENT,
) -> BenchReport:
    """Measure prefill, first token and decode of a bundle that passes verify on this runner.

    Args:
        bundle: the bundle or its folder.
        runner: as for :func:`verify`.
        lowering: the bundle's default when None.
        prefill: prompt lengths in tokens.
        decode: tokens to decode one by one.
        depth: tokens in the state when decoding begins.
        batch: batch sizes.
        threads: CPU threads; the runtime's default when None.
        repetitions: of each row; 10, or more of short ones, when None.
        cuda_graph: decode in a CUDA graph: ``on``, ``off``, ``both``; as the runner does when None.
        target: whose predicted ceiling the rows are held against; this machine's when None.
        outputs: files for the report, ``.md``, ``.csv`` or ``.json`` by suffix.
        baseline: an earlier ``.json`` to compare with; ``ok`` is false when a row is slower.
        progress: shows bars.
    """
    from ssm_export.benchmarking import bench as bench_bundle

    return bench_bundle(
        _open(bundle),
        runner=runner,
        lowering=lowering,
        prefill=tuple(prefill),
        decode=decode,
        depth=tuple(depth),
        batch=tuple(batch),
        threads=threads,
        repetitions=repetitions,
        cuda_graph=cuda_graph,
        target=target,
        outputs=tuple(outputs),
        baseline=baseline,
        progress=progress,
    )


def generate(
    bundle: PathLike | Bundle,
    prompt: str | Sequence[int] = "",
    *,
    runner: str = "onnxruntime",
    max_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stream: Callable[[str], None] | None = None,
    load_state: PathLike | None = None,
    save_state: PathLike | None = None,
) -> Generation:
    """Continue a prompt, or a saved state. :class:`~ssm_export.session.Session` does more.

    Args:
        bundle: the bundle or its folder.
        prompt: text, or token ids for a bundle without a tokenizer.
        runner: as for :func:`verify`.
        max_tokens: tokens to add at most; 0 only reads the prompt, where the state is saved.
        temperature: 0 for greedy.
        top_k: sample among so many tokens; 0 for all.
        top_p: sample among the likeliest tokens that have this probability together.
        seed: of the sampling.
        stream: called with each piece of text as it comes.
        load_state: a saved state to go on from; the prompt may then be empty.
        save_state: a file for the state after the prompt and the new tokens.
    """
    from ssm_export.generation import generate as generate_text

    return generate_text(
        _open(bundle),
        prompt,
        runner=runner,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stream=stream,
        load_state=load_state,
        save_state=save_state,
    )


def package(
    bundle: PathLike | Bundle,
    output: PathLike,
    *,
    target: str | None = None,
    lowering: str | None = None,
    force: bool = False,
    triton: bool = False,
    max_batch: int | None = None,
    streams: int | None = None,
    progress: Progress = SILENT,
) -> PackReport | RepositoryReport:
    """Pack a bundle for a device, or write a model repository for Triton Inference Server.

    Args:
        bundle: the bundle or its folder; it is only read.
        output: the archive (``.tar``) or the repository's folder; it must not exist.
        target: the device; for a repository, whose TensorRT engine is taken.
        lowering: what the device builds engines from, ``native`` or ``plugin``; plugins where they
            can be had when None.
        force: pack although the bundle is predicted not to fit into the device's memory.
        triton: make a model repository.
        max_batch: of a repository: rows of a batch; 32 when None.
        streams: of a repository: sequences whose state one instance keeps; 4096 when None.
        progress: shows bars.
    """
    from ssm_export import packaging

    served = {"max-batch": max_batch, "streams": streams}
    packed = {"lowering": lowering, "force": force or None}
    kind, others = ("repository", packed) if triton else ("pack", served)
    for name, value in others.items():
        if value is not None:
            raise SsmExportError(
                errors.BAD_OPTION,
                f"a {kind} has no such option",
                where=f"--{name}",
                fix=f"leave --{name} out, or {'leave out' if triton else 'add'} --triton",
            )
    if not (triton or target):
        raise SsmExportError(
            errors.BAD_OPTION,
            "a pack is for one device, and none was named",
            where="--target",
            fix="--target NAME of ssm-export list targets, or --triton for a server",
        )
    if not triton:
        return packaging.make_pack(
            _open(bundle),
            str(target),
            output,
            lowering=lowering,
            force=force,
            progress=progress,
        )
    return packaging.make_repository(
        _open(bundle),
        output,
        target=target,
        max_batch=32 if max_batch is None else max_batch,
        streams=4096 if streams is None else streams,
        progress=progress,
    )


def report(
    bundle: PathLike | Bundle, output: PathLike | None = None, target: str | None = None
) -> HtmlReport:
    """Make one HTML file of everything that a bundle and its reports say. It needs no network.

    Args:
        bundle: the bundle or its folder.
        output: the file; ``reports/report.html`` of the bundle when None.
        target: the device of the roofline and of predictions; the one that was benched when None.
    """
    from ssm_export.html_report import make_report

    return make_report(bundle, output, target=target)


def inspect(path: PathLike) -> InspectReport:
    """Say what a bundle, a graph, an engine or a checkpoint holds, without reading its weights."""
    from ssm_export.inspection import inspect as inspect_path

    return inspect_path(path)


def doctor() -> DoctorReport:
    """Say what this machine can do."""
    from ssm_export.engines.doctor import examine

    return examine()


def list_items(what: str) -> list[dict[str, Any]]:
    """List ``models``, ``ops``, ``targets`` or ``recipes``: dicts with their ``name`` first."""
    from ssm_export import listing

    makers = {
        "models": listing.models,
        "ops": listing.operators,
        "targets": listing.targets,
        "recipes": listing.recipes,
    }
    if what not in makers:
        raise SsmExportError(
            errors.BAD_OPTION,
            f"there is no list of '{what}'",
            fix=f"one of {', '.join(makers)}",
        )
    return makers[what]()


def _open(bundle: PathLike | Bundle) -> Bundle:
    return bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)


@contextmanager
def _reference(bundle: Bundle, against: str, checkpoint: PathLike | None) -> Iterator[Reference]:
    """Open the checkpoint of a bundle and make the reference model ``against`` from it."""
    try:
        from ssm_export.references import make_reference
    except ModuleNotFoundError as error:
        name = error.name or "torch"
        raise missing_package(name, "export", f"verify --against {against}") from error
    source = os.fspath(checkpoint or bundle.manifest.source["path"])
    if not Path(source).exists():
        raise SsmExportError(
            errors.NO_SUCH_PATH,
            f"the checkpoint of this bundle is not at '{source}' any more",
            fix="give its folder with --checkpoint, or verify --against parity",
        )
    opened, reference = make_reference(bundle, against, source)
    try:
        yield reference
    finally:
        opened.close()
