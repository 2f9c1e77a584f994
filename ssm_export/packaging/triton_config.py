"""``config.pbtxt``: how Triton Inference Server is told of a graph and its states.

Sources: protobuf/model_config.proto of triton-inference-server/common; «Reshape» in
docs/user_guide/model_configuration.md of triton-inference-server/server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ssm_export.bundle import StateSpec
from ssm_export.engines._ports import Port

_TYPES: Final = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}
_IDLE_MICROSECONDS: Final = 60_000_000
"""A stream that sends nothing for so long loses its state; Triton's default is one second."""
_QUEUE_DELAY_MICROSECONDS: Final = 500
"""How long a request waits for others to share its batch."""


class Word(str):
    """A value that is written without quotes: the name of an enumeration's member."""


def configuration(
    states: Sequence[StateSpec],
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    *,
    name: str,
    backend: str,
    max_batch: int,
    streams: int,
    profiles: Sequence[str] = (),
) -> dict[str, Any]:
    """A model's configuration: the members of Triton's ``ModelConfig`` message."""
    config: dict[str, Any] = {
        "name": name,
        "backend": backend,
        "max_batch_size": max_batch,
        "input": [_tensor(port) for port in inputs],
        "output": [_tensor(port) for port in outputs],
        "sequence_batching": {
            "max_sequence_idle_microseconds": _IDLE_MICROSECONDS,
            "oldest": {
                "max_candidate_sequences": streams,
                "preferred_batch_size": [max_batch],
                "max_queue_delay_microseconds": _QUEUE_DELAY_MICROSECONDS,
            },
            "state": [_state(state) for state in states],
        },
    }
    if profiles:
        config["instance_group"] = [
            {"count": 1, "kind": Word("KIND_GPU"), "profile": list(profiles)}
        ]
    return config


def _tensor(port: Port) -> dict[str, Any]:
    """Sizes without the batch axis; one that is left with none is [1] to clients."""
    dims = [size if isinstance(size, int) else -1 for size in port.shape[1:]]
    tensor: dict[str, Any] = {
        "name": port.name,
        "data_type": Word(_TYPES[port.dtype]),
        "dims": dims or [1],
    }
    return tensor if dims else {**tensor, "reshape": {}}


def _state(state: StateSpec) -> dict[str, Any]:
    sizes = [size for size in state.shape if isinstance(size, int)]
    start: dict[str, Any] = {
        "name": f"start of {state.name_in}",
        "data_type": Word(_TYPES[state.dtype]),
        "dims": sizes,
    }
    if state.initial_value:
        start["data_file"] = state.name_in
    else:
        start["zero_data"] = True
    return {
        "input_name": state.name_in,
        "output_name": state.name_out,
        "data_type": Word(_TYPES[state.dtype]),
        "dims": sizes,
        "initial_state": [start],
    }


def text_format(message: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """The lines of a message in protobuf's text format."""
    for key, value in message.items():
        items = value if isinstance(value, list) else [value]
        if items and not isinstance(items[0], Mapping) and isinstance(value, list):
            yield f"{indent}{key}: [ {', '.join(map(_scalar, items))} ]"
            continue
        for item in items:
            if isinstance(item, Mapping):
                yield f"{indent}{key} {{"
                yield from text_format(item, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{key}: {_scalar(item)}"


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not isinstance(value, Word):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)
