"""The library reads containers of kernels, and refuses every damaged one with a sentence."""

from __future__ import annotations

import base64
import dataclasses
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeGpu
from kernel_calls import ORIN, call_of
from node_runs import fields_of, plan_of
from plugin_harness import Harness

from ssm_export.ops import get
from ssm_export_plugins import aot, container

CONV = get("CausalConv1d")


@pytest.fixture
def section(gpu: FakeGpu) -> bytes:
    return gpu.section(plan_of(CONV), capabilities=(80, 87, "ptx"))


def refused(harness: Harness, kernels: bytes) -> str:
    """What is said of kernels that must be refused."""
    assert harness.create("CausalConv1d", {"kernels": kernels}) is None
    message = harness.errors()
    assert "ssm_export cannot create CausalConv1d 'layer.0' with kernels of " in message
    return message


def header_and_images(section: bytes) -> tuple[str, bytes]:
    _, size, packed, _, _ = struct.unpack_from("<8sIIII", section)
    header = section[24 : 24 + size].decode()
    return header, zlib.decompress(section[24 + size : 24 + size + packed])


def made_of(header: str, images: bytes, packed: bytes | None = None) -> bytes:
    packed = zlib.compress(images) if packed is None else packed
    text = header.encode()
    sizes = (len(text), len(packed), len(images), zlib.crc32(images))
    return struct.pack("<8sIIII", b"SSMKRN01", *sizes) + text + packed


def test_zeros_at_the_end_are_not_read(harness: Harness, section: bytes) -> None:
    for zeros in (0, 1, 7):
        plugin = harness.create("CausalConv1d", {"kernels": section + bytes(zeros)})
        assert plugin is not None, harness.log()
        assert plugin.serialize()["kernels"] == section


def test_every_truncation(harness: Harness, section: bytes) -> None:
    for size in range(1, len(section)):
        message = refused(harness, section[:size])
        assert "truncated" in message or "no compiled kernels" in message, (size, message)


def test_every_damaged_byte(harness: Harness, section: bytes) -> None:
    """Never a crash; what is read in spite of it is read as the Python side reads it."""
    rng = np.random.default_rng(0)
    for position in range(len(section)):
        damaged = bytearray(section)
        damaged[position] ^= int(rng.integers(1, 256))
        plugin = harness.create("CausalConv1d", {"kernels": bytes(damaged)})
        if plugin is None:
            assert "cannot create CausalConv1d" in harness.errors()
        else:
            compressed = 24 + struct.unpack_from("<I", section, 8)[0]
            assert 24 <= position < compressed, f"byte {position} is not checked"
            plugin.destroy()


def test_damaged_streams(harness: Harness, section: bytes) -> None:
    """The decompressor alone, behind right sizes and checksums: truncated, and any byte changed."""
    header, images = header_and_images(section)
    packed = zlib.compress(images)
    rng = np.random.default_rng(1)
    for size in range(len(packed)):
        refused(harness, made_of(header, images, packed[:size]))
    for _ in range(300):
        damaged = bytearray(packed)
        damaged[int(rng.integers(len(packed)))] ^= int(rng.integers(1, 256))
        if zlib_reads(bytes(damaged), images):
            continue
        refused(harness, made_of(header, images, bytes(damaged)))


def zlib_reads(packed: bytes, images: bytes) -> bool:
    """Whether a change did not matter, as in zlib's level hint."""
    try:
        return zlib.decompress(packed) == images
    except zlib.error:
        return False


@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize("strategy", [zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY, zlib.Z_FIXED])
def test_every_kind_of_block(harness: Harness, section: bytes, level: int, strategy: int) -> None:
    """Stored, fixed and dynamic blocks, long and far matches, and codes of 15 bits."""
    header, images = header_and_images(section)
    rng = np.random.default_rng(level)
    skewed = (rng.geometric(0.03, 90_000) % 256).astype(np.uint8).tobytes()
    images += skewed + skewed[-40_000:] + bytes(70_000) + rng.bytes(70_000)
    packer = zlib.compressobj(level, strategy=strategy)
    packed = packer.compress(images) + packer.flush()
    kernels = made_of(header, images, packed)
    plugin = harness.create("CausalConv1d", {"kernels": kernels})
    assert plugin is not None, harness.log()


def test_wrong_checksums(harness: Harness, section: bytes) -> None:
    header, images = header_and_images(section)
    other = bytes([images[0] ^ 1]) + images[1:]
    kernels = made_of(header, images, zlib.compress(other))
    assert "do not match their checksum" in refused(harness, kernels)
    packed = zlib.compress(images)
    adler = packed[:-4] + bytes(4)
    assert "do not match their checksum" in refused(harness, made_of(header, images, adler))


def test_other_formats(harness: Harness, section: bytes) -> None:
    newer = section.replace(b"SSMKRN01", b"SSMKRN02", 1)
    assert "kernels of format 02, this library reads format 01" in refused(harness, newer)
    assert "no compiled kernels" in refused(harness, b"\x7fELF" + section)
    claims = bytearray(section)
    struct.pack_into("<I", claims, 16, 0xFFFFFFFF)
    assert "compressed bytes cannot hold 4294967295" in refused(harness, bytes(claims))


LINES = [
    ("op CausalConv1d 1", "op CausalConv1d one", "'one' is no integer"),
    ("op CausalConv1d 1", "op CausalConv1d 2", "kernels of version 2 of the operator"),
    ("activation string", "activation text", "'text' is no kind of attribute"),
    ("input x float32 B T 24", "input x float32", "it has 0 sizes"),
    ("input x float32 B T 24", "input x float32 B T 99999999999999999999", "is too large"),
    ("output y float32 B T 24", "output y float32 B U 24", "no input has a size called 'U'"),
    ("case T 1 eq", "case T 1", "leaves 2 values"),
    ("case T 1 eq", "case T 1 is", "'is' is no number, size or operation"),
    ("case T 1 eq", "case eq", "'eq' lacks an operand"),
    ("case T 1 eq", "when T 1 eq", "it is not known here"),
    ("launch 0", "launch 7", "there is no image 7"),
    ("argument tensor x", "argument tensor w", "there is no tensor of this name"),
    ("argument tensor x", "argument float 1.0", "'float' is no kind of argument"),
    ("grid 1\n", "", "has no three grid lines"),
    ("\nend\n", "\n", "not at this place"),
    (" 128 40 2\n", " 128 40\n", "it ends too early"),
    (" 128 40 2\n", " 2048 40 2\n", "'2048' is no integer from 1 to 1024"),
    ("image 0 ", "image 0 ! ", "is neither cubin nor ptx"),
    ("attribute", "attribute\n\nattribute", "it ends too early"),
]


@pytest.mark.parametrize(("line", "instead", "said"), LINES)
def test_wrong_lines(harness: Harness, section: bytes, line: str, instead: str, said: str) -> None:
    header, images = header_and_images(section)
    assert line in header
    assert said in refused(harness, made_of(header.replace(line, instead, 1), images))


def test_an_image_beyond_the_images(harness: Harness, section: bytes) -> None:
    made = container.read(section)[0]
    header, images = header_and_images(section)
    line = f" 80 0 {len(made.images[0].data)} "
    assert line in header
    beyond = header.replace(line, f" 80 {len(images)} {len(made.images[0].data)} ", 1)
    assert f"the images are only {len(images)} bytes" in refused(harness, made_of(beyond, images))


def test_a_header_without_its_last_line(harness: Harness, section: bytes) -> None:
    header, images = header_and_images(section)
    assert "does not end with a line" in refused(harness, made_of(header[:-1], images))
    assert "does not end with a line" in refused(harness, made_of("", images))


def test_equal_sections_are_kept_apart_by_content(harness: Harness, section: bytes) -> None:
    made = container.read(section)[0]
    other = container.write(dataclasses.replace(made, made=("0.2.0", "3.9.0")))
    first = harness.create("CausalConv1d", {"kernels": section})
    second = harness.create("CausalConv1d", {"kernels": other})
    assert first is not None and second is not None
    assert first.serialize()["kernels"] == section
    assert second.serialize()["kernels"] == other


def test_kernels_of_the_compiler(
    harness: Harness, gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real machine code for an Orin is read and kept; what is no GPU refuses to load it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    inputs = CONV.make_inputs(np.random.default_rng(0), CONV.sizes, (), True)
    call = call_of(CONV, inputs, {"T": "float16", "S": "float32"})
    (compiled,) = aot.compile_calls([(CONV, call)], ORIN)
    fields = fields_of(compiled.plan, base64.b64encode(compiled.blob))
    plugin = harness.create("CausalConv1d", fields)
    assert plugin is not None, harness.log()
    assert plugin.serialize()["kernels"] == compiled.blob
    assert plugin.attach() is None
    assert "CUDA_ERROR_INVALID_IMAGE" in harness.errors()
