"""The ``plugin`` lowering: scans become nodes that TensorRT hands to our plugin library."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Final

import onnx_ir as ir

from ssm_export.lowering import tied_table
from ssm_export.lowering.bodies import call_key, call_of, spec_of
from ssm_export.lowering.fusion import form_of_call, fuse_calls
from ssm_export.lowering.lower import Lowered, copy_of
from ssm_export.ops import _onnx, fused_ops
from ssm_export.ops.spec import DOMAIN, VERSION, Call, OpSpec

PLUGIN_DOMAIN: Final = "ssm_export.plugin"
"""Domain of the stamped nodes. Their inputs are not those of the operator's schema: what a call
leaves out is gone, and the kernel image says which port each input is."""

NAMESPACE: Final = "ssm_export"
"""Namespace of the plugin creators."""


def lower_for_plugin(model: ir.Model, kernels: Callable[[OpSpec, Call], bytes]) -> Lowered:
    """Strip the bodies and stamp every call with the plugin's name, version and kernel images.

    Calls that one kernel computes become one first; the counts say how many.

    TensorRT's parsers differ in whether a function or a plugin of the same name comes first, so no
    function of ours stays. Kernel images are base64, because ONNX wants text in a string.

    Args:
        model: a canonical ``prefill`` graph; any length from one token, so that one engine serves
            prompts and single tokens. It is not changed.
        kernels: gives the compiled kernels (one section of a ``.ssmk`` container) of a call.

    Raises:
        SsmExportError: ``LOWERING_FAILED`` when a call has no body of ours.
    """
    copy = copy_of(model)
    tied_table.store_once(copy.graph)
    counts: dict[str, int] = {}
    fused = fuse_calls(copy)
    if fused:
        counts["CausalConv1d and SsdScan to ConvSsdScan"] = fused
    images: dict[tuple[object, ...], str] = {}
    for node in list(ir.traversal.RecursiveGraphIterator(copy.graph)):
        if node.domain != DOMAIN:
            continue
        spec = fused_ops().get(node.op_type) or spec_of(node)
        call = call_of(node, spec, form_of_call(node, copy))
        key = call_key(spec.name, call)
        if key not in images:
            images[key] = base64.b64encode(kernels(spec, call)).decode("ascii")
        _stamp(node, call, images[key])
        counts[f"{spec.name} to plugin"] = counts.get(f"{spec.name} to plugin", 0) + 1
    for identifier in [key for key in copy.functions if key[0] == DOMAIN]:
        del copy.functions[identifier]
    copy.graph.opset_imports.pop(DOMAIN, None)
    copy.graph.opset_imports[PLUGIN_DOMAIN] = VERSION
    return Lowered(copy, counts)


def _stamp(node: ir.Node, call: Call, image: str) -> None:
    present = [value for value in node.inputs if value is not None]
    node.resize_inputs(len(present))
    for index, value in enumerate(present):
        node.replace_input_with(index, value)
    node.domain, node.overload, node.version = PLUGIN_DOMAIN, "", None
    node.metadata_props.pop(_onnx.FORM, None)
    attributes = {
        **call.attributes,
        "plugin_namespace": NAMESPACE,
        "plugin_version": str(VERSION),
        "kernels": image,
    }
    for name, given in attributes.items():
        node.attributes[name] = ir.convenience.convert_attribute(name, given)
