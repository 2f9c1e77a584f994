"""The container of kernel images: what is written is read back, and nothing damaged is."""

from __future__ import annotations

import dataclasses
import struct
import zlib

import numpy as np
import pytest
from kernel_calls import ADA, call_of

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export.ops import OpSpec, all_ops, fused_ops
from ssm_export_plugins import kernels
from ssm_export_plugins.container import (
    Image,
    Kept,
    Scratch,
    Section,
    StoredCase,
    StoredLaunch,
    read,
    section_of,
    write,
)
from ssm_export_plugins.expressions import constant, parse, symbol
from ssm_export_plugins.plan import Operand, Plan, Tensor

OPS = [spec for spec in (all_ops() | fused_ops()).values() if kernels.has_kernels(spec.name)]
CUBIN = bytes(range(256)) * 3
PTX = b".version 8.0\n.target sm_80\n\0"


def example() -> Section:
    grid = (symbol("B"), parse("T 64 cdiv"), constant(1))
    arguments = (Tensor("x"), Scratch("sums"), Kept("counts"), parse("T 1 sub"))
    return Section(
        op="Made",
        version=3,
        made=("0.1.0", "3.9.0"),
        attributes={"high": float("inf"), "low": 1e-30, "n": -2, "text": "two words", "none": ""},
        inputs=(Operand("x", "float16", ("B", "T", 96)), Operand("lengths", "int32", ("B",))),
        outputs=(Operand("y", "float32", ("B", "T", 96)),),
        workspaces={"sums": parse("B T 64 cdiv mul 384 mul")},
        persistents={"counts": 1024},
        images=(
            Image(0, "walk", "cubin", 87, CUBIN, 4096, 128, 33, 2),
            Image(0, "walk", "ptx", 80, PTX, 4096, 128, 33, 2),
            Image(1, "end", "cubin", 87, CUBIN[:100], 0, 256, 20, 0),
        ),
        cases=(
            StoredCase(parse("T 1 eq"), (StoredLaunch(1, grid, arguments),)),
            StoredCase(
                constant(1),
                (StoredLaunch(0, grid, arguments), StoredLaunch(1, grid, (Tensor("y"),))),
            ),
        ),
    )


def refused(data: bytes) -> str:
    with pytest.raises(SsmExportError) as caught:
        read(data)
    assert caught.value.code == errors.BAD_KERNEL_IMAGE
    return caught.value.what


def with_header(edit: tuple[str, str]) -> bytes:
    """The example with one change to its header, otherwise sound."""
    data = write(example())
    header_bytes = struct.unpack_from("<I", data, 8)[0]
    header = data[24 : 24 + header_bytes].decode()
    assert edit[0] in header
    changed = header.replace(*edit, 1).encode()
    return (
        data[:8]
        + struct.pack("<I", len(changed))
        + data[12:24]
        + changed
        + (data[24 + header_bytes :])
    )


def test_what_is_written_is_read() -> None:
    section = example()
    assert read(write(section)) == (section,)
    assert write(read(write(section))[0]) == write(section)


def test_sections_back_to_back_and_zeros_at_the_end() -> None:
    one = example()
    cases = (StoredCase(constant(1), (StoredLaunch(1, one.cases[0].launches[0].grid, ()),)),)
    other = dataclasses.replace(
        one, op="Other", workspaces={}, persistents={}, images=one.images[1:], cases=cases
    )
    for tail in (b"", b"\0", bytes(40)):
        assert read(write(one) + write(other) + tail) == (one, other)


def test_the_layout_is_the_documented_one() -> None:
    """Read with nothing but ``struct`` and ``zlib``."""
    data = write(example())
    magic, header, packed, raw, check = struct.unpack_from("<8sIIII", data)
    assert magic == b"SSMKRN01"
    assert len(data) == 24 + header + packed
    images = zlib.decompress(data[24 + header :])
    assert (len(images), zlib.crc32(images)) == (raw, check)
    lines = data[24 : 24 + header].decode().split("\n")
    assert lines[:4] == ["op Made 3", "made 0.1.0 3.9.0", "attribute high float inf",
                         "attribute low float 1e-30"]  # fmt: skip
    assert "input x float16 B T 96" in lines
    assert "workspace sums B T 64 cdiv mul 384 mul" in lines
    assert "persistent counts 1024" in lines
    for line, content in zip(
        [line for line in lines if line.startswith("image ")],
        (CUBIN, PTX, CUBIN[:100]),
        strict=True,
    ):
        offset, size = map(int, line.split()[5:7])
        assert offset % 64 == 0
        assert images[offset : offset + size] == content
    first = lines.index("case T 1 eq")
    assert lines[first : first + 11] == [
        "case T 1 eq", "launch 1", "grid B", "grid T 64 cdiv", "grid 1",
        "argument tensor x", "argument workspace sums", "argument persistent counts",
        "argument int T 1 sub", "end", "case 1",
    ]  # fmt: skip


def test_every_truncation_is_refused() -> None:
    data = write(example())
    for length in range(1, len(data)):
        refused(data[:length])
    assert "empty" in refused(b"")
    assert "empty" in refused(bytes(7))


def test_damage_to_the_images_is_refused() -> None:
    """All but a bit of the stream that means nothing, such as those that fill its last byte."""
    data, section = write(example()), example()
    header = struct.unpack_from("<I", data, 8)[0]
    places = [*range(8), *range(12, 24), *range(24 + header, len(data))]
    harmless = 0
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        try:
            assert read(bytes(damaged)) == (section,)
            harmless += 1
        except SsmExportError as error:
            assert error.code == errors.BAD_KERNEL_IMAGE
    assert harmless < 3


def test_damage_to_the_header_never_ends_in_another_error() -> None:
    data, section = write(example()), example()
    header = struct.unpack_from("<I", data, 8)[0]
    for place in range(24, 24 + header):
        for bit in (0x01, 0x80):
            damaged = bytearray(data)
            damaged[place] ^= bit
            try:
                assert read(bytes(damaged)) != (section,)
            except SsmExportError as error:
                assert error.code == errors.BAD_KERNEL_IMAGE


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (("op Made", "hop Made"), "'op' belongs"),
        (("launch 1", "launch 7"), "no image 7"),
        (("argument tensor x", "argument tensor q"), "no tensor 'q'"),
        (("argument workspace sums", "argument workspace q"), "no workspace 'q'"),
        (("argument persistent counts", "argument persistent sums"), "no persistent 'sums'"),
        (("persistent counts 1024", "persistent counts B"), "'B' is no number of bytes"),
        (("persistent counts 1024", "persistent counts 0"), "'0' is no number of bytes"),
        (("argument int T 1 sub", "argument int S 1 sub"), "'S'"),
        (("T 1 eq", "T eq"), "is no expression"),
        (("T 1 eq", "T 1"), "is no expression"),
        (("float16 B", "float17 B"), "float17"),
        (("cubin 87 0", "cubin 87 999999"), "beyond the images"),
        (("cubin", "tubin"), "tubin"),
        (("\nend\n", "\n"), "'end'"),
        (("case 1\n", "nonsense\n"), "out of place"),
    ],
)
def test_a_wrong_header_says_what_is_wrong(edit: tuple[str, str], said: str) -> None:
    assert said in refused(with_header(edit))


def test_another_format_is_refused() -> None:
    assert "SSMKRN99" in refused(write(example()).replace(b"SSMKRN01", b"SSMKRN99"))


def plans_of(spec: OpSpec) -> list[Plan]:
    """Every plan for one token, and every plan for any length."""
    found: list[Plan] = []
    for step in (True, False):
        sizes = {**spec.sizes, "T": 1 if step else 9}
        inputs = spec.make_inputs(np.random.default_rng(1), sizes, (), False)
        call = call_of(spec, inputs, {"T": "float16", "S": "float32"}, step)
        found += kernels.plans(spec, call, ADA)
    return found


@pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
def test_plans_of_every_operator(spec: OpSpec) -> None:
    """A plan goes through the container: same operands, and the same launches at any sizes."""
    for plan in plans_of(spec):
        images = [
            Image(i, kernel.name, "cubin", 89, CUBIN, 0, 32 * kernel.num_warps, 32, 2)
            for i, kernel in enumerate(plan.kernels())
        ]
        (stored,) = read(write(section_of(plan, images, ("0", "0"))))
        assert (stored.inputs, stored.outputs) == (plan.inputs, plan.outputs)
        assert stored.attributes == plan.attributes
        for sizes in ({"B": 1, "T": 1}, {"B": 3, "T": 1000}, {"B": 2, "T": 100_000}):
            wanted = plan.case(sizes).launches
            taken = next(case for case in stored.cases if case.when.value(sizes)).launches
            assert [image_entry(stored, one) for one in taken] == [w.kernel.name for w in wanted]
            for one, want in zip(taken, wanted, strict=True):
                assert [a.value(sizes) for a in one.grid] == [a.value(sizes) for a in want.grid]
                assert len(one.arguments) == len(want.arguments)


def image_entry(section: Section, launch: StoredLaunch) -> str:
    return next(image.entry for image in section.images if image.index == launch.image)


@pytest.mark.parametrize("spec", OPS, ids=lambda spec: spec.name)
def test_a_workspace_for_the_largest_sizes_is_enough_for_all(spec: OpSpec) -> None:
    """TensorRT asks for workspace once, at the largest sizes of a profile."""
    sizes = [1, 2, 3, 63, 64, 65, 127, 128, 129, 1000, 1024, 4097, 20_000]
    for plan in plans_of(spec):
        for space in plan.workspaces():
            for batch in (1, 2, 7, 64):
                needs = [space.elements.value({"B": batch, "T": time}) for time in sizes]
                assert needs == sorted(needs), (plan.label, space.name)
                assert needs[-1] <= space.elements.value({"B": batch + 1, "T": sizes[-1]})
                assert needs[-1] < 2**31
