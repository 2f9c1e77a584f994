"""Every error a user can meet: one code, one sentence, one exit status. This is the only list.

An error says what, where, why and the command or edit that fixes it. Numbers are grouped by the
stage that raises them: 1xx usage, 2xx checkpoint, 3xx trace and lowering, 4xx bundle, 5xx engines,
6xx this machine, 7xx verify, bench and sessions, 8xx quantize, 901 a mistake of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_MACHINE: Final = 3


@dataclass(frozen=True)
class ErrorCode:
    """One kind of error: its code (``SSM-E203``), what it means, and the exit status."""

    code: str
    meaning: str
    exit_status: int = EXIT_FAILED


def _code(number: int, meaning: str, exit_status: int = EXIT_FAILED) -> ErrorCode:
    return ErrorCode(f"SSM-E{number}", meaning, exit_status)


# 1xx usage
BAD_OPTION = _code(101, "an option has a value that cannot be used", EXIT_USAGE)
OUTPUT_EXISTS = _code(102, "the output folder exists already", EXIT_USAGE)
NO_SUCH_PATH = _code(103, "a path given does not exist", EXIT_USAGE)
BAD_CONFIG_FILE = _code(104, "a YAML file or --set value cannot be read", EXIT_USAGE)
UNKNOWN_TARGET = _code(105, "no target has this name", EXIT_USAGE)
NO_PERMISSION = _code(106, "a file or folder may not be read or written", EXIT_USAGE)
WRONG_USAGE = _code(107, "the command line names an unknown verb, option or value", EXIT_USAGE)

# 2xx checkpoint
NO_CONFIG = _code(201, "the checkpoint folder has no config.json")
UNKNOWN_MODEL_TYPE = _code(202, "the model_type is not supported")
SHAPE_MISMATCH = _code(203, "a weight disagrees with the config")
MISSING_TENSORS = _code(204, "the checkpoint lacks weights that the model needs")
UNEXPECTED_TENSORS = _code(205, "the checkpoint has weights that the model has no place for")
CORRUPT_WEIGHTS = _code(206, "a weights file is truncated or corrupt")
UNSAFE_PICKLE = _code(207, "a .bin file would run code when it is loaded")
NOT_FINITE = _code(208, "a weight holds NaN or Inf, or overflows the chosen precision")
NO_WEIGHTS = _code(209, "the checkpoint folder has no weights")
BAD_MODEL_CONFIG = _code(210, "config.json cannot be read, or a value in it cannot be used")
HUB_FAILED = _code(211, "the checkpoint could not be had from the hub")
MISSING_SHARD = _code(212, "a weights file that the index names is missing")

# 3xx trace and lowering
BAD_OPERATOR_CALL = _code(301, "an operator was called with inputs that it does not take")
TRACE_FAILED = _code(302, "the model could not be traced")
LOWERING_FAILED = _code(303, "the graph cannot be lowered for this runtime")
GRAPH_INVALID = _code(304, "the graph that was made fails its checks")
KERNEL_UNSUPPORTED = _code(305, "no GPU kernel takes this call of an operator")
KERNEL_COMPILE_FAILED = _code(306, "a GPU kernel could not be compiled for this chip")
BAD_KERNEL_IMAGE = _code(307, "compiled kernels are damaged, or of another format")

# 4xx bundle
NOT_A_BUNDLE = _code(401, "the folder is not a bundle")
NEWER_SCHEMA = _code(402, "the bundle was made by a newer release")
HASH_MISMATCH = _code(403, "a file of the bundle was changed after it was verified")
MISSING_FILE = _code(404, "a file that the manifest names is missing")
DISK_FULL = _code(405, "the disk is full")
NOT_A_PACK = _code(406, "the file is not a pack of this tool, or only a part of one")
PACK_CHANGED = _code(407, "a file of a pack is not the one that was packed")
BAD_REPORT = _code(408, "a report of the bundle cannot be read")

# 5xx engines
ENGINE_BUILD_FAILED = _code(501, "the engine could not be built")
PLUGIN_IN_GRAPH = _code(502, "the graph holds operators that this engine has no plugin for")
ENGINE_MISMATCH = _code(503, "the engine was built for another version, GPU or platform")
NO_ENGINE = _code(504, "the bundle has no engine for this runner")
RUNNER_FAILED = _code(505, "the runtime failed while it ran the graph")
PLUGIN_LIBRARY = _code(507, "the TensorRT plugin library is missing, or of another version")
BAD_FEED = _code(506, "an array fed to a graph is missing, unknown, or of a wrong shape or type")

# 6xx this machine
MISSING_PACKAGE = _code(601, "a Python package is not installed", EXIT_MACHINE)
NO_GPU = _code(602, "this machine has no GPU that can run the engine", EXIT_MACHINE)
MISSING_PROVIDER = _code(603, "the runtime lacks the execution provider", EXIT_MACHINE)
WRONG_DEVICE = _code(604, "this is made for another chip, system or release", EXIT_MACHINE)
TOO_LITTLE_MEMORY = _code(605, "the device has too little memory, or too little disk", EXIT_MACHINE)
MISSING_TOOL = _code(606, "a program of the system is not installed", EXIT_MACHINE)

# 7xx verify, bench, generate, sessions
PARITY_FAILED = _code(701, "the graph does not compute what the reference computes")
NOT_VERIFIED = _code(702, "the bundle does not pass verify, so its speed means nothing")
NO_TOKENIZER = _code(703, "the bundle has no tokenizer")
EMPTY_PROMPT = _code(704, "the prompt has no tokens", EXIT_USAGE)
BAD_STATE_FILE = _code(705, "a saved state cannot be read")
STATE_MISMATCH = _code(706, "a saved state is of another bundle")
SLOWER = _code(707, "the bundle is slower than the baseline, or noise hides whether it is")
BAD_BASELINE = _code(708, "a baseline cannot be read, or measured something else")

# 8xx quantize
BAD_CALIBRATION = _code(801, "calibration or evaluation data cannot be used", EXIT_USAGE)
UNSUPPORTED_SCHEME = _code(802, "the target cannot compute with this number format", EXIT_USAGE)
SCALE_UNDERFLOW = _code(803, "a quantization scale is too small for its type")
ALREADY_QUANTIZED = _code(804, "the bundle is quantized already", EXIT_USAGE)
QUALITY_LOST = _code(805, "quantization cost more quality than the recipe allows")

INTERNAL = _code(901, "something unexpected went wrong in this program")
INTERRUPTED = _code(130, "interrupted by the user", 130)


class SsmExportError(Exception):
    """An error the user can act on.

    Args:
        code: one of the codes of this module.
        what: what is wrong, with the names and values.
        where: the file, tensor, layer or option; empty when ``what`` says it.
        why: the likely reason, where one is known.
        fix: the command or edit that mends it.
    """

    def __init__(
        self, code: ErrorCode, what: str, *, where: str = "", why: str = "", fix: str = ""
    ) -> None:
        self.code = code
        self.what = what
        self.where = where
        self.why = why
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        parts = [f"{self.code.code}  {head.rstrip('.')}."]
        if self.why:
            parts.append(f"{self.why.rstrip('.')}.")
        if self.fix:
            parts.append(f"Fix: {self.fix}")
        return " ".join(parts)

    def as_json(self) -> dict[str, str]:
        """The error as the ``error`` member of a ``--json`` document."""
        return {
            "code": self.code.code,
            "what": self.what,
            "where": self.where,
            "why": self.why,
            "fix": self.fix,
        }


def missing_package(package: str, extra: str, purpose: str) -> SsmExportError:
    """The error for a package that an extra of ours would have installed."""
    return SsmExportError(
        MISSING_PACKAGE,
        f"{purpose} needs the package '{package}', which is not installed",
        fix=f"pip install 'ssm-export[{extra}]'",
    )


def bf16_state() -> SsmExportError:
    """The refusal of a recurrent state in bf16, wherever it is asked for."""
    return SsmExportError(
        BAD_OPTION,
        "a bf16 state drifts by 4e-2 within 4096 steps",
        where="--state-dtype bf16",
        why="each step adds to the state, and bf16 keeps 8 bits of it",
        fix="--state-dtype fp32 (or fp16 where memory is short)",
    )


def all_codes() -> list[ErrorCode]:
    """Every code, in order; the documentation and the tests read this."""
    return sorted(
        (value for value in globals().values() if isinstance(value, ErrorCode)),
        key=lambda code: int(code.code.removeprefix("SSM-E")),
    )
