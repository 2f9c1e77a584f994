"""What the driver refuses is reported with the op, the shapes and the reason, and fails."""

from __future__ import annotations

import dataclasses

import pytest
from fake_gpu import FakeGpu
from node_runs import Node, feeds_of, make_node, plan_of
from plugin_harness import Harness

from ssm_export.ops import get
from ssm_export_plugins.expressions import constant, symbol
from ssm_export_plugins.plan import Launch, Plan

CONV = get("CausalConv1d")
SIZES = {"B": 2, "T": 40}


@pytest.fixture
def plan() -> Plan:
    return plan_of(CONV)


def attached(harness: Harness, gpu: FakeGpu, plan: Plan, **section: object) -> str:
    """Attach a node with such a section; what is said when that fails."""
    node = make_node(harness, gpu, plan, gpu.section(plan, **section))  # type: ignore[arg-type]
    harness.log()
    assert node.plugin.attach() is None
    message = harness.errors()
    assert "CausalConv1d 'layer.0' loading [x (B, T, 24) float32, " in message
    return message


def test_a_failing_launch(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    node = make_node(harness, gpu, plan)
    node.build()
    context = node.attach()
    _, tensors = feeds_of(CONV, "float32", SIZES)
    gpu.fail("cuLaunchKernel", 719)
    assert context.run(tensors, SIZES) is None
    message = harness.errors()
    for part in ("CausalConv1d 'layer.0' enqueue [(2, 40, 24) float32, ",
                 "kernel 'causal_conv1d_prefill' on a grid of (",
                 "CUDA_ERROR_LAUNCH_FAILED (719), a sentence of the driver"):  # fmt: skip
        assert part in message
    gpu.fail("cuLaunchKernel", 0)
    assert context.run(tensors, SIZES) is not None


def test_an_error_without_a_name(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    context = make_node(harness, gpu, plan).attach()
    gpu.fail("cuLaunchKernel", 12345)
    _, tensors = feeds_of(CONV, "float32", SIZES)
    assert context.run(tensors, SIZES) is None
    assert "unknown CUDA error (12345)" in harness.errors()


@pytest.mark.parametrize(
    ("device", "capabilities", "compiled"),
    [(90, (87,), "8.7 (cubin)"), (80, (87, 89), "8.7 (cubin), 8.9 (cubin)"), (75, ("ptx",), "PTX")],
)
def test_a_gpu_of_another_architecture(
    device: int, capabilities: tuple, compiled: str, harness: Harness, gpu: FakeGpu, plan: Plan
) -> None:
    gpu.device(device)
    message = attached(harness, gpu, plan, capabilities=capabilities)
    assert "its kernels were compiled for compute capability" in message
    assert compiled in message
    assert f"this GPU has {device // 10}.{device % 10}" in message
    assert gpu.modules() == 0


def test_a_cubin_that_the_driver_refuses(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    """One of the same generation may be taken by the rules and refused by the driver."""
    gpu.device(89)
    message = attached(harness, gpu, plan, capabilities=(80,))
    assert "cubin for compute capability 8.0, this GPU has 8.9" in message
    assert "CUDA_ERROR_NO_BINARY_FOR_GPU (209)" in message
    assert "[the fake compiler's log]" in message


@pytest.mark.parametrize(
    ("device", "capabilities", "loads"),
    [(87, (80, 87, "ptx"), 1), (89, (80, "ptx"), 2), (120, (87, "ptx"), 1)],
)
def test_the_image_that_fits_best(
    device: int, capabilities: tuple, loads: int, harness: Harness, gpu: FakeGpu, plan: Plan
) -> None:
    """The exact cubin, else one of the generation that the driver takes, else PTX."""
    gpu.device(device)
    node = make_node(harness, gpu, plan, gpu.section(plan, capabilities=capabilities))
    gpu.history()
    context = node.attach()
    assert gpu.history()["cuModuleLoadDataEx"] == loads * len(plan.kernels())
    _, tensors = feeds_of(CONV, "float32", SIZES)
    assert context.run(tensors, SIZES) is not None


def test_damaged_code(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    message = attached(harness, gpu, plan, data=b"garbage\0")
    assert "CUDA_ERROR_INVALID_IMAGE" in message


def test_a_kernel_that_is_not_in_its_image(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    message = attached(harness, gpu, plan, entry="missing")
    assert "kernel 'missing'" in message and "CUDA_ERROR_NOT_FOUND (500)" in message
    assert gpu.modules() == 0


def test_shared_memory(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    """More than 48 KB is asked for when a kernel is loaded; more than there is, is refused."""
    context = make_node(harness, gpu, plan, gpu.section(plan, shared=100_000)).attach()
    assert gpu.history()["cuFuncSetAttribute"] == len(plan.kernels())
    _, tensors = feeds_of(CONV, "float32", SIZES)
    assert context.run(tensors, SIZES) is not None
    gpu.device(87, 65_536)
    gpu.context(2)
    message = attached(harness, gpu, plan, shared=100_000)
    assert "needs 100000 bytes of shared memory, a block of this GPU has 65536" in message


def test_no_context(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    gpu.context(0)
    assert "no current CUDA context" in attached(harness, gpu, plan)


def test_tensors_that_begin_anywhere(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    context = make_node(harness, gpu, plan).attach()
    inputs, outputs = context.described(SIZES)
    assert context.plugin.shapes(inputs, outputs)
    for index, operand in enumerate([*plan.inputs, *plan.outputs]):
        for address, said in ((4096 + 8, "does not begin at a multiple of 16 bytes"),
                              (0, "has no address")):  # fmt: skip
            addresses = [4096] * (len(inputs) + len(outputs))
            addresses[index] = address
            read, written = addresses[: len(inputs)], addresses[len(inputs) :]
            assert not context.plugin.enqueue(inputs, outputs, read, written)
            kind = "input" if index < len(inputs) else "output"
            message = harness.errors()
            assert f"{kind} '{operand.name}'" in message and said in message
    assert gpu.launches == []


def test_enqueue_before_everything_else(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    node = make_node(harness, gpu, plan)
    inputs, outputs = node.described(SIZES)
    addresses = [16] * len(inputs), [16] * len(outputs)
    assert not node.plugin.enqueue(inputs, outputs, *addresses)
    assert "not attached to an execution context" in harness.errors()
    context = node.attach()
    assert not context.plugin.enqueue(inputs, outputs, *addresses)
    assert "no shapes that the kernels take were given before" in harness.errors()


def test_a_grid_that_is_too_large(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    def along_z(one: Launch) -> Launch:
        return dataclasses.replace(one, grid=(constant(1), constant(1), symbol("B")))

    cases = [dataclasses.replace(case, launches=tuple(map(along_z, case.launches)))
             for case in plan.cases]  # fmt: skip
    context = make_node(harness, gpu, dataclasses.replace(plan, cases=tuple(cases))).attach()
    assert context.plugin.shapes(*context.described({"B": 65_535, "T": 40}))
    assert not context.plugin.shapes(*context.described({"B": 70_000, "T": 40}))
    assert "70000 blocks along z for B = 70000, T = 40, CUDA has at most 65535" in harness.errors()


def test_an_integer_that_is_too_large(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    context = make_node(harness, gpu, plan).attach()
    assert not context.plugin.shapes(*context.described({"B": 1, "T": 1 << 31}))
    message = harness.errors()
    assert "which does not fit 32 bits" in message or "CUDA has at most" in message


def test_layers_share_their_kernels(harness: Harness, gpu: FakeGpu, plan: Plan) -> None:
    """64 layers load an image once per context, and the last one unloads it."""
    section = gpu.section(plan)
    nodes: list[Node] = [make_node(harness, gpu, plan, section) for _ in range(64)]
    gpu.history()
    contexts = [node.attach() for node in nodes]
    assert gpu.history()["cuModuleLoadDataEx"] == len(plan.kernels())
    gpu.context(2)
    others = [node.attach() for node in nodes[:2]]
    assert gpu.history()["cuModuleLoadDataEx"] == len(plan.kernels())
    assert gpu.modules() == 2 * len(plan.kernels())
    for node in contexts:
        node.plugin.destroy()
    assert gpu.modules() == len(plan.kernels())
    for node in others:
        node.plugin.destroy()
    assert gpu.modules() == 0


def test_kernels_are_loaded_without_disturbing_a_capture(
    harness: Harness, gpu: FakeGpu, plan: Plan
) -> None:
    node = make_node(harness, gpu, plan)
    gpu.history()
    node.attach()
    assert gpu.history()["cuThreadExchangeStreamCaptureMode"] == 2
