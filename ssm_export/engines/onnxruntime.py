"""ONNX Runtime, on the CPU or through its CUDA provider.

A bundle's two graphs become two sessions, each made at its first use. Measured on the matrices of
mamba-130m's size (515 MB in fp32, 257 MB in fp16; ONNX Runtime 1.32, x86-64, two threads of a busy
machine), both sessions open, proportional set size:

=============  ============================  =======================================
               as ONNX Runtime does it       ``low_memory``
=============  ============================  =======================================
fp32 weights   1020 MB, decode 83 ms         530 MB, decode 143 ms
fp16 weights   1150 MB, decode 110 ms        300 MB, decode 820 ms
=============  ============================  =======================================

By itself each session packs its own copy of every weight, and the Python package has no way to
share packed ones. With ``low_memory`` nothing is packed and no constant is folded, so both sessions
read the same pages of ``weights.data``, and the weights of an fp16 or bf16 model are widened one by
one while it runs: it needs its file and the largest weight in fp32.

Arrays go in and out of ``run`` as they are. Binding outputs to numpy arrays was measured and left
out: it was slower (1.5 to 3 ms against 0.8 ms for the 48 states of mamba2-130m), since ONNX
Runtime hands its own buffers to numpy without a copy. Decoding with all states bound, to two sets
of buffers in turn or to one, took as long as handing its outputs back as inputs, within the noise
(``tests/benchmarks/bench_session.py``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ssm_export import errors
from ssm_export.bundle import FORMS, Bundle
from ssm_export.engines._ports import Port, check_feeds
from ssm_export.engines.runner import Arrays, RunnerInfo
from ssm_export.errors import SsmExportError, missing_package

if TYPE_CHECKING:
    import onnxruntime

PROVIDERS: Final = {
    "onnxruntime": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
}
"""Runner name -> the provider that runs it."""

FUSED_DOMAIN: Final = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_ERRORS_ONLY: Final = 3
"""ONNX Runtime's log severity: warnings about fallbacks are no news to a user of a bundle."""

EXACT_PRODUCTS: Final = ("session.x64quantprecision", "1")
"""Session entry for graphs with ``MatMulIntegerToFloat``. x86 CPUs without VNNI add pairs of int8
products in 16 bits, which saturate: on one with AVX2 the largest codes gave a relative L2 error of
1. With this entry they take unsigned weights, whose kernel is exact and slower; other CPUs stay as
they are."""
_NO_FUSION: Final = ("session.disable_quant_qdq", "1")
"""Session entry with which codes are computed as they are written, in floating point. Other graphs
with products of int8 codes are run so. Fused, they would saturate as well, and ONNX Runtime 1.32
cannot load them with :data:`EXACT_PRODUCTS`: it gives a DequantizeLinear with a scale per output a
single zero point, and refuses a table that embedding and head share."""

_FAILED_NODE: Final = re.compile(
    r"running (?P<op>\w+) node\. Name:'(?P<name>[^']*)' Status Message: (?P<why>.*)", re.DOTALL
)
_NUMPY_TYPES: Final = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
}


def known_operators() -> frozenset[str]:
    """Names of ``com.microsoft`` operators that this ONNX Runtime has."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    schemas = state.get_all_operator_schema()
    return frozenset(schema.name for schema in schemas if schema.domain == FUSED_DOMAIN)


def has_integer_products(bundle: Bundle) -> bool:
    """Whether activations of a bundle are rounded to int8."""
    activations = (bundle.manifest.quantization or {}).get("activations", {})
    return any(one["scheme"] == "int8" for one in activations.values())


def runnable_lowering(bundle: Bundle, known: frozenset[str]) -> str:
    """The manifest's lowering, or a more portable one where its fused operators are not ``known``.

    A bundle made on a workstation may meet an older ONNX Runtime on a board: for Python 3.10 there
    is none after 1.23, and LinearAttention came later.
    """
    import onnx

    chosen = str(bundle.manifest.lowering["chosen"])
    graphs = bundle.manifest.graphs
    for lowering in (chosen, "native", "canonical"):
        if any(lowering not in graphs[form] for form in FORMS):
            continue
        needed = {
            node.op_type
            for form in FORMS
            for node in onnx.load(
                str(bundle.graph_path(form, lowering)), load_external_data=False
            ).graph.node
            if node.domain == FUSED_DOMAIN
        }
        if needed <= known:
            return lowering
    return chosen


class OnnxRuntimeRunner:
    """A bundle in ONNX Runtime.

    Args:
        bundle: the open bundle.
        name: ``onnxruntime`` (CPU) or ``onnxruntime-cuda``.
        lowering: which graphs to run; the manifest's choice when left out, or ``native`` where
            this ONNX Runtime is too old for that choice.
        threads: threads inside an operator; ONNX Runtime's choice (one per core) when left out.
        low_memory: run in about the memory of the weights file, slower.
        exact: compute codes as they are written, with no product in integers; slow.

    Raises:
        SsmExportError: ``MISSING_PACKAGE``, ``MISSING_PROVIDER``, or ``BAD_OPTION`` for a lowering
            that the bundle does not hold.
    """

    def __init__(
        self,
        bundle: Bundle,
        name: str = "onnxruntime",
        *,
        lowering: str | None = None,
        threads: int | None = None,
        low_memory: bool = False,
        exact: bool = False,
    ) -> None:
        self._provider = PROVIDERS[name]
        self._ort = _import_onnxruntime(name, self._provider)
        self._bundle = bundle
        self._threads = threads
        self._low_memory = low_memory
        self._exact = exact
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._inputs: dict[str, tuple[Port, ...]] = {}
        self._outputs: dict[str, list[str]] = {}
        chosen = lowering or runnable_lowering(bundle, known_operators())
        self._paths = {form: bundle.graph_path(form, chosen) for form in FORMS}
        self.info = RunnerInfo(
            name=name,
            versions={"onnxruntime": str(self._ort.__version__)},
            device="cpu" if name == "onnxruntime" else "cuda:0",
            lowering=chosen,
        )

    def run(self, form: str, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Run the ``step`` or ``prefill`` graph once.

        Args:
            form: ``step`` or ``prefill``.
            feeds: every input of the graph by name; types must be the graph's. A bundle in bf16 is
                fed and gives float32.

        Raises:
            SsmExportError: ``BAD_FEED``, or ``RUNNER_FAILED`` with the operator that failed.
        """
        session = self._session(form)
        check_feeds(form, self._inputs[form], feeds)
        try:
            arrays = session.run(None, dict(feeds))
        except MemoryError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise self._failure(form, error, "run") from error
        return dict(zip(self._outputs[form], arrays, strict=True))

    def close(self) -> None:
        """Free both sessions."""
        self._sessions.clear()

    def _session(self, form: str) -> onnxruntime.InferenceSession:
        if form in self._sessions:
            return self._sessions[form]
        if form not in self._paths:
            raise SsmExportError(
                errors.BAD_OPTION,
                f"the bundle has no graph '{form}', only {sorted(self._paths)}",
                where=str(self._bundle.path),
                fix="run 'step' or 'prefill'",
            )
        path = self._paths[form]
        options = self._options()
        source: str | bytes = str(path)
        if self._bundle.manifest.precision == "bf16":
            source = _widened(path)
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(path.parent)
            )
        try:
            session = self._ort.InferenceSession(
                source,
                options,
                providers=self._provider_list(),
                disabled_optimizers=["ConstantFolding"] if self._low_memory else None,
            )
        except MemoryError:
            raise
        except Exception as error:  # as in run
            raise self._failure(form, error, "load") from error
        if session.get_providers()[0] != self._provider:
            raise _no_provider(self.info.name, self._provider, "it could not start its GPU")
        self._inputs[form] = tuple(
            Port(
                value.name,
                _NUMPY_TYPES.get(value.type, value.type),
                tuple(size if isinstance(size, int) else str(size) for size in value.shape),
            )
            for value in session.get_inputs()
        )
        self._outputs[form] = [value.name for value in session.get_outputs()]
        self._sessions[form] = session
        return session

    def _options(self) -> onnxruntime.SessionOptions:
        options = self._ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        if self._exact:
            options.add_session_config_entry(*_NO_FUSION)
        elif has_integer_products(self._bundle):
            exact = EXACT_PRODUCTS if self.info.lowering == "ort" else _NO_FUSION
            options.add_session_config_entry(*exact)
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        if self._low_memory:
            # The last level folds the casts of fp16 weights whatever is disabled by name.
            options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            # This order makes a cast just before its use; the default one makes them all first.
            options.execution_order = self._ort.ExecutionOrder.PRIORITY_BASED
            options.enable_cpu_mem_arena = False
            if not self._bundle.manifest.quantization:
                # Packed codes are read as they lie, and 30 times slower without this.
                options.add_session_config_entry("session.disable_prepacking", "1")
        return options

    def _provider_list(self) -> list[str]:
        if self._provider == PROVIDERS["onnxruntime"]:
            return [self._provider]
        return [self._provider, PROVIDERS["onnxruntime"]]

    def _failure(self, form: str, error: Exception, verb: str) -> SsmExportError:
        found = _FAILED_NODE.search(str(error))
        if found:
            what = f"{found['op']} '{found['name']}' failed: {_one_line(found['why'])}"
        else:
            what = f"ONNX Runtime cannot {verb} it: {_one_line(str(error))}"
        return SsmExportError(
            errors.RUNNER_FAILED,
            what,
            where=f"{form} graph ({self._paths[form].name})",
            fix="ssm-export verify BUNDLE --lowering native tells whether the graph or the "
            "runtime is at fault",
        )


def installed_providers() -> list[str]:
    """The providers of the ONNX Runtime that is installed; empty when there is none."""
    try:
        import onnxruntime
    except ImportError:
        return []
    return [str(provider) for provider in onnxruntime.get_available_providers()]


def _import_onnxruntime(name: str, provider: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        extra = "cpu" if name == "onnxruntime" else "gpu"
        package = "onnxruntime" if name == "onnxruntime" else "onnxruntime-gpu"
        raise missing_package(package, extra, f"the runner '{name}'") from error
    if provider not in onnxruntime.get_available_providers():
        raise _no_provider(name, provider, "the package that is installed was built without it")
    if provider != PROVIDERS["onnxruntime"] and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    return onnxruntime


def _no_provider(name: str, provider: str, why: str) -> SsmExportError:
    return SsmExportError(
        errors.MISSING_PROVIDER,
        f"the runner '{name}' needs ONNX Runtime's {provider}, which it does not have here",
        why=why,
        fix="pip uninstall onnxruntime && pip install 'ssm-export[gpu]', on a machine with an "
        "NVIDIA GPU; or --runner onnxruntime",
    )


def _widened(path: Path) -> bytes:
    """A bf16 graph with fp32 arithmetic, as bytes that still point into the weights file.

    ONNX Runtime has bf16 kernels for few operators, on the CPU for next to none.
    """
    import onnx_ir as ir

    from ssm_export.lowering.widen import widen

    return bytes(ir.to_proto(widen(ir.load(path))).SerializeToString())


def _one_line(text: str) -> str:
    """A runtime's message without its line breaks and its source path."""
    words = " ".join(text.split())
    words = re.sub(r"/\S+/(?=[\w.]+:\d+)", "", words)
    return words if len(words) <= 400 else f"{words[:400]} …"
