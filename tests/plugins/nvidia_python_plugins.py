"""Run as a child: our Python plugins in NVIDIA's own source of ``tensorrt.plugin``.

    python nvidia_python_plugins.py FOLDER    # the folder that holds tensorrt/plugin

The source is all Python; what it needs of TensorRT's compiled module comes from TensorRT-RTX, whose
API is the same, and the few classes that one lacks are stood in for below: symbolic dimensions,
which here are numbers, and the names of ahead-of-time plugins. So NVIDIA's code checks our
signatures, calls our functions in its own order and reads what they return; no network is built
and nothing is launched. Prints one JSON document for each call.
"""

from __future__ import annotations

import enum
import hashlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import tensorrt_rtx

BATCH = 3


class Dimension:
    """``IDimensionExpr`` as a number."""

    def __init__(self, value: int) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return True

    def get_constant_value(self) -> int:
        return self.value


class ExprBuilder:
    """``IExprBuilder`` that computes at once."""

    def constant(self, value: int) -> Dimension:
        return Dimension(value)

    def operation(self, operation: Any, a: Dimension, b: Dimension) -> Dimension:
        names = {"SUM": "add", "SUB": "sub", "PROD": "mul", "FLOOR_DIV": "div",
                 "CEIL_DIV": "cdiv", "MIN": "min", "MAX": "max"}  # fmt: skip
        from ssm_export_plugins.expressions import OPERATIONS

        return Dimension(OPERATIONS[names[operation.name]](a.value, b.value))


class Creation(enum.Enum):
    UNKNOWN, PREFER_JIT, PREFER_AOT, STRICT_JIT, STRICT_AOT = range(5)


class Dims(list):
    MAX_DIMS = 8

    def __init__(self, sizes: Any = 0) -> None:
        super().__init__([None] * sizes if isinstance(sizes, int) else sizes)


class Description:
    """``PluginTensorDesc`` and, with itself as ``desc``, ``DynamicPluginTensorDesc``."""

    def __init__(self, kind: Any = None, shape: tuple[int, ...] = ()) -> None:
        self.type, self.dims, self.scale = kind, Dims(shape), 1.0
        self.format = tensorrt_rtx.TensorFormat.LINEAR
        self.desc = self


def stand_in(folder: Path) -> types.ModuleType:
    """A module ``tensorrt`` of TensorRT-RTX, the classes above and NVIDIA's ``plugin``."""
    module: Any = types.ModuleType("tensorrt")
    module.__path__ = [str(folder / "tensorrt")]
    module.__getattr__ = lambda name: getattr(tensorrt_rtx, name)
    module.__version__ = "stand-in"
    module.QuickPluginCreationRequest = Creation
    module.IPluginV3QuickAOTBuild = type("IPluginV3QuickAOTBuild", (), {})
    module.ISymExpr = type("ISymExpr", (), {})
    module.IDimensionExpr, module.DimsExprs, module.Dims = Dimension, Dims, Dims
    module.PluginTensorDesc = Description
    module.DynamicPluginTensorDesc = type("DynamicPluginTensorDesc", (Description,), {})
    sys.modules["tensorrt"] = module
    return module


def main() -> None:
    """Register, build and describe a plugin for each call."""
    trt: Any = stand_in(Path(sys.argv[1]))
    from step_calls import CHIP, step_calls

    from ssm_export_plugins import python_plugins

    calls = step_calls()
    names = python_plugins.register(calls, CHIP, trt=trt)
    if python_plugins.register(calls, CHIP, trt=trt) != names:
        raise AssertionError("registered twice")
    callbacks = python_plugins.register(calls[:1], CHIP, ahead_of_time=False, trt=trt)
    from tensorrt.plugin import _lib

    for (spec, call), name in zip(calls, names, strict=True):
        print(json.dumps({"op": spec.name, **build(trt, _lib, name, spec, call)}))
    definition = _lib.QDP_REGISTRY[callbacks[0]]
    print(json.dumps({"impl": definition.impl_func is not None, "aot": definition.aot_impl_func}))


def build(trt: Any, lib: Any, name: str, spec: Any, call: Any) -> dict[str, Any]:
    """What NVIDIA's class makes of one plugin, in the order in which a builder asks it."""
    from ssm_export_plugins.python_plugins import _DATA_TYPES

    def kind(port: Any) -> Any:
        return getattr(trt.DataType, _DATA_TYPES[call.types.get(port.type, port.type)][0])

    sizes = {**call.sizes, "B": BATCH, "-": call.sizes.get("K", 1) - 1}
    ports = [port for port in spec.inputs if port.name in call.present]
    shapes = [tuple(sizes[axis] for axis in port.axes) for port in ports]
    creator = trt.get_plugin_registry().get_creator(name.split("::")[1], "1", "ssm_export")
    plugin = lib._TemplatePluginCreator(*reversed(name.split("::")), {}).create_plugin(
        *reversed(name.split("::")), [], trt.TensorRTPhase.BUILD, Creation.STRICT_AOT
    )
    types_out = plugin.get_output_data_types([kind(p) for p in ports], [len(s) for s in shapes])
    dimensions = [[Dimension(size) for size in shape] for shape in shapes]
    exprs = plugin.get_output_shapes(dimensions, [], ExprBuilder())
    shapes_out = [tuple(dimension.value for dimension in shape) for shape in exprs]
    dynamic = trt.DynamicPluginTensorDesc
    described = [dynamic(kind(p), s) for p, s in zip(ports, shapes, strict=True)]
    described += [dynamic(t, s) for t, s in zip(types_out, shapes_out, strict=True)]
    combinations = plugin.get_supported_format_combinations(described, len(ports))
    plugin.configure_plugin(described[: len(ports)], described[len(ports) :])
    plugin.set_tactic(0)
    launch, extra = types.SimpleNamespace(), Extra()
    plugin.get_launch_params(dimensions, described, len(ports), launch, extra, ExprBuilder())
    entry, ptx = plugin.get_kernel(described[: len(ports)], described[len(ports) :])
    return {
        "name": name,
        "creator": creator is not None,
        "types": [t.name for t in types_out],
        "shapes": shapes_out,
        "combination": [c.type.name for c in combinations],
        "tactics": plugin.get_valid_tactics(),
        "launch": {n: value.expr.value for n, value in vars(launch).items()},
        "integers": extra.nbSymExprs,
        "entry": entry.decode(),
        "ptx": hashlib.sha256(ptx).hexdigest(),
    }


class Extra(dict):
    """``ISymExprs``: how many there are, and each."""

    nbSymExprs = 0  # noqa: N815  (TensorRT's name)


if __name__ == "__main__":
    from ssm_export.resources import load_plugins

    load_plugins()
    main()
