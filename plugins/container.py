"""Kernel images: the ``.ssmk`` container that the TensorRT plugin library is given.

A container is one or more sections back to back; a section is everything the library has to know
of one call of an operator: the plan, and the machine code of its kernels. Integers are
little-endian::

    8 bytes  SSMKRN01
    u32 H    bytes of the header
    u32 C    bytes of the compressed images
    u32 R    bytes of the images
    u32      CRC-32 of the images
    H bytes  header: lines of UTF-8, one thing each, tokens separated by one blank
    C bytes  zlib stream of the images, back to back, each at a multiple of 64

Zeros after the last section are not read: a parser of ONNX adds one. The lines of a header, in
this order::

    op <op type> <version>
    made <ssm-export version> <triton version>
    attribute <name> <int|float|string> <value>
    input <port> <onnx type> <size or symbol> …
    output <port> <onnx type> <size or symbol> …
    workspace <name> <bytes: expression>
    persistent <name> <bytes>
    image <index> <entry> <cubin|ptx> <capability> <offset> <bytes> <shared memory> <threads>
          <registers> <null pointers that follow the arguments>              (one line)
    case <condition: expression>
      launch <image index>
      grid <expression>                                                      (x, y, z)
      argument <tensor <port>|workspace <name>|persistent <name>|int <expression>>
    end

A ``persistent`` buffer is zero when an execution context is made and belongs to it from then on.
PTX ends with a zero byte, so that its address can be given to a driver. Where two ``image`` lines
have one index, the loader takes the cubin of its device or else the PTX.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ssm_export import errors
from ssm_export.errors import SsmExportError
from ssm_export_plugins.expressions import OPERATIONS, Expr, parse
from ssm_export_plugins.plan import BYTES, Dimension, Operand, Persistent, Plan, Tensor, Workspace

MAGIC: Final = b"SSMKRN01"
ALIGNMENT: Final = 64
_HEAD: Final = struct.Struct("<8sIIII")
_KINDS: Final = ("cubin", "ptx")


@dataclass(frozen=True)
class Image:
    """Machine code or PTX of one kernel.

    Args:
        index: what launches name it by; images of one index are the same kernel for other chips.
        entry: name of the kernel in the module.
        kind: ``cubin`` or ``ptx``.
        capability: compute capability times ten, such as 87.
        data: the module.
        shared: dynamic shared memory of a block in bytes.
        threads: threads of a block.
        registers: registers of a thread.
        extra: null pointers to append to the arguments.
    """

    index: int
    entry: str
    kind: str
    capability: int
    data: bytes
    shared: int
    threads: int
    registers: int
    extra: int


@dataclass(frozen=True)
class Scratch:
    """A workspace as a kernel argument, by its name."""

    name: str


@dataclass(frozen=True)
class Kept:
    """A persistent buffer as a kernel argument, by its name."""

    name: str


StoredArgument: TypeAlias = "Tensor | Scratch | Kept | Expr"


@dataclass(frozen=True)
class StoredLaunch:
    """One launch: the image's index, blocks along x, y, z, and the arguments."""

    image: int
    grid: tuple[Expr, Expr, Expr]
    arguments: tuple[StoredArgument, ...]


@dataclass(frozen=True)
class StoredCase:
    """Launches for the sizes of which ``when`` is not 0."""

    when: Expr
    launches: tuple[StoredLaunch, ...]


@dataclass(frozen=True)
class Section:
    """Everything the library has to know of one call; see :class:`ssm_export_plugins.plan.Plan`.

    Args:
        op, version: operator type and version.
        made: versions of ssm-export and of Triton.
        attributes: name to int, float or text.
        inputs, outputs: operands in the order of the plugin's inputs and outputs.
        workspaces: name to bytes.
        persistents: name to bytes.
        images: the kernels.
        cases: tried in order.
    """

    op: str
    version: int
    made: tuple[str, str]
    attributes: Mapping[str, float | str]
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    workspaces: Mapping[str, Expr]
    persistents: Mapping[str, int]
    images: tuple[Image, ...]
    cases: tuple[StoredCase, ...]


def section_of(plan: Plan, images: Sequence[Image], made: tuple[str, str]) -> Section:
    """A plan and its compiled kernels as a section.

    Args:
        plan: the plan.
        images: their indices are positions in ``plan.kernels()``.
        made: versions of ssm-export and of Triton.
    """
    index = {kernel.key: i for i, kernel in enumerate(plan.kernels())}

    def stored(argument: Any) -> StoredArgument:
        if isinstance(argument, Persistent):
            return Kept(argument.name)
        return Scratch(argument.name) if isinstance(argument, Workspace) else argument

    return Section(
        op=plan.op,
        version=plan.version,
        made=made,
        attributes=dict(plan.attributes),
        inputs=plan.inputs,
        outputs=plan.outputs,
        workspaces={space.name: space.elements * BYTES[space.type] for space in plan.workspaces()},
        persistents={one.name: one.elements * BYTES[one.type] for one in plan.persistents()},
        images=tuple(images),
        cases=tuple(
            StoredCase(
                case.when,
                tuple(
                    StoredLaunch(
                        index[launch.kernel.key], launch.grid, tuple(map(stored, launch.arguments))
                    )
                    for launch in case.launches
                ),
            )
            for case in plan.cases
        ),
    )


def write(section: Section) -> bytes:
    """The bytes of a section; equal sections give equal bytes."""
    lines = [f"op {section.op} {section.version}", f"made {' '.join(section.made)}"]
    lines += [_attribute_line(name, value) for name, value in section.attributes.items()]
    for word, operands in (("input", section.inputs), ("output", section.outputs)):
        lines += [" ".join(map(str, (word, o.name, o.type, *o.shape))) for o in operands]
    lines += [f"workspace {name} {size}" for name, size in section.workspaces.items()]
    lines += [f"persistent {name} {size}" for name, size in section.persistents.items()]
    data = bytearray()
    for image in section.images:
        data += bytes(-len(data) % ALIGNMENT)
        lines.append(
            f"image {image.index} {image.entry} {image.kind} {image.capability} {len(data)} "
            f"{len(image.data)} {image.shared} {image.threads} {image.registers} {image.extra}"
        )
        data += image.data
    for case in section.cases:
        lines.append(f"case {case.when}")
        for launch in case.launches:
            lines.append(f"launch {launch.image}")
            lines += [f"grid {axis}" for axis in launch.grid]
            lines += [f"argument {_argument_words(argument)}" for argument in launch.arguments]
        lines.append("end")
    header = "".join(f"{line}\n" for line in lines).encode()
    packed = zlib.compress(bytes(data), 9)
    head = _HEAD.pack(MAGIC, len(header), len(packed), len(data), zlib.crc32(data))
    return head + header + packed


def read(data: bytes) -> tuple[Section, ...]:
    """The sections of a container.

    Raises:
        SsmExportError: ``BAD_KERNEL_IMAGE`` when it is damaged, cut short or of another format.
    """
    sections, start = [], 0
    while start < len(data) and any(data[start:]):
        section, start = _read_section(data, start)
        sections.append(section)
    if not sections:
        raise _bad("it is empty")
    return tuple(sections)


def _read_section(data: bytes, start: int) -> tuple[Section, int]:
    if len(data) - start < _HEAD.size:
        raise _bad("it ends inside of the first bytes of a section")
    magic, header_bytes, packed_bytes, raw_bytes, check = _HEAD.unpack_from(data, start)
    if magic != MAGIC:
        raise _bad(f"a section begins with {magic!r} and not with {MAGIC!r}")
    middle = start + _HEAD.size + header_bytes
    end = middle + packed_bytes
    if end > len(data):
        raise _bad(f"{end - len(data)} bytes are missing at its end")
    unpack = zlib.decompressobj()
    try:
        images = unpack.decompress(data[middle:end], raw_bytes + 1)
    except zlib.error as error:
        raise _bad(f"its images cannot be unpacked ({error})") from error
    if len(images) != raw_bytes or not unpack.eof or unpack.unused_data:
        raise _bad(f"its images do not unpack to {raw_bytes} bytes")
    if zlib.crc32(images) != check:
        raise _bad("the checksum of its images is wrong")
    try:
        text = data[start + _HEAD.size : middle].decode()
        if not text.endswith("\n"):
            raise ValueError("its last line does not end")
        section = _Header(text.split("\n")[:-1], images).section()
    except (ValueError, KeyError, IndexError) as error:
        raise _bad(f"its header cannot be read: {error}") from error
    return section, end


class _Header:
    """Reads the lines of a header; ``ValueError`` for what does not belong."""

    def __init__(self, lines: list[str], images: bytes) -> None:
        self._lines = lines
        self._images = images
        self._at = 0
        self._symbols: set[str] = set()

    def section(self) -> Section:
        op, version = self._words("op", 2)
        made = self._words("made", 2)
        attributes = dict(self._attribute() for _ in self._while("attribute"))
        inputs = tuple(self._operand("input") for _ in self._while("input"))
        outputs = tuple(self._operand("output") for _ in self._while("output"))
        workspaces = dict(self._workspace() for _ in self._while("workspace"))
        persistents = dict(self._persistent() for _ in self._while("persistent"))
        images = tuple(self._image() for _ in self._while("image"))
        ports = {operand.name for operand in (*inputs, *outputs)}
        indices = {image.index for image in images}
        buffers = (set(workspaces), set(persistents))
        cases = tuple(self._case(ports, buffers, indices) for _ in self._while("case"))
        if self._at != len(self._lines):
            raise ValueError(f"'{self._lines[self._at]}' is out of place")
        if not (inputs and outputs and cases):
            raise ValueError("it has no inputs, outputs or cases")
        return Section(
            op, int(version), (made[0], made[1]), attributes, inputs, outputs, workspaces,
            persistents, images, cases,
        )  # fmt: skip

    def _next(self, word: str) -> str:
        if self._at == len(self._lines):
            raise ValueError(f"a line '{word}' is missing at its end")
        line = self._lines[self._at]
        if line != word and not line.startswith(word + " "):
            raise ValueError(f"'{line}' stands where '{word}' belongs")
        self._at += 1
        return line[len(word) + 1 :]

    def _words(self, word: str, count: int) -> list[str]:
        words = self._next(word).split(" ")
        if len(words) != count:
            raise ValueError(f"'{word}' has {len(words)} words, not {count}")
        return words

    def _while(self, word: str) -> Any:
        while self._at < len(self._lines) and self._lines[self._at].startswith(word + " "):
            yield word

    def _attribute(self) -> tuple[str, float | str]:
        name, kind, value = self._next("attribute").split(" ", 2)
        return name, {"int": int, "float": float, "string": str}[kind](value)

    def _operand(self, word: str) -> Operand:
        name, kind, *sizes = self._next(word).split(" ")
        if kind not in BYTES:
            raise ValueError(f"'{name}' has the unknown type '{kind}'")
        shape: list[Dimension] = [int(size) if size.isdigit() else size for size in sizes]
        self._symbols |= {size for size in shape if isinstance(size, str)}
        return Operand(name, kind, tuple(shape))

    def _workspace(self) -> tuple[str, Expr]:
        name, expression = self._next("workspace").split(" ", 1)
        return name, self._expression(expression)

    def _persistent(self) -> tuple[str, int]:
        name, size = self._words("persistent", 2)
        if not size.isdigit() or int(size) == 0:
            raise ValueError(f"'{size}' is no number of bytes")
        return name, int(size)

    def _image(self) -> Image:
        index, entry, kind, *rest = self._words("image", 10)
        capability, offset, size, shared, threads, registers, extra = map(int, rest)
        if kind not in _KINDS:
            raise ValueError(f"image {index} is of the unknown kind '{kind}'")
        if offset < 0 or size <= 0 or offset + size > len(self._images):
            raise ValueError(f"image {index} reaches beyond the images")
        code = self._images[offset : offset + size]
        return Image(int(index), entry, kind, capability, code, shared, threads, registers, extra)

    def _case(
        self, ports: set[str], buffers: tuple[set[str], set[str]], images: set[int]
    ) -> StoredCase:
        when = self._expression(self._next("case"))
        launches = []
        for _ in self._while("launch"):
            image = int(self._next("launch"))
            if image not in images:
                raise ValueError(f"there is no image {image}")
            x, y, z = (self._expression(self._next("grid")) for _ in range(3))
            arguments = tuple(self._argument(ports, buffers) for _ in self._while("argument"))
            launches.append(StoredLaunch(image, (x, y, z), arguments))
        self._next("end")
        if not launches:
            raise ValueError("a case launches nothing")
        return StoredCase(when, tuple(launches))

    def _argument(self, ports: set[str], buffers: tuple[set[str], set[str]]) -> StoredArgument:
        kind, value = self._next("argument").split(" ", 1)
        if kind == "int":
            return self._expression(value)
        if kind == "tensor" and value in ports:
            return Tensor(value)
        if kind == "workspace" and value in buffers[0]:
            return Scratch(value)
        if kind == "persistent" and value in buffers[1]:
            return Kept(value)
        raise ValueError(f"there is no {kind} '{value}'")

    def _expression(self, text: str) -> Expr:
        expression, depth = parse(text), 0
        for token in expression.tokens:
            if isinstance(token, str) and token in OPERATIONS:
                depth -= 1
                if depth < 1:
                    raise ValueError(f"'{text}' is no expression")
            else:
                if isinstance(token, str) and token not in self._symbols:
                    raise ValueError(f"'{token}' in '{text}' is the size of no tensor")
                depth += 1
        if depth != 1:
            raise ValueError(f"'{text}' is no expression")
        return expression


def _attribute_line(name: str, value: float | str) -> str:
    kind = {int: "int", float: "float", str: "string"}[type(value)]
    if "\n" in str(value):
        raise ValueError(f"attribute {name} has a line break")
    return f"attribute {name} {kind} {repr(value) if kind == 'float' else value}"


def _argument_words(argument: StoredArgument) -> str:
    if isinstance(argument, Tensor):
        return f"tensor {argument.port}"
    if isinstance(argument, Scratch):
        return f"workspace {argument.name}"
    if isinstance(argument, Kept):
        return f"persistent {argument.name}"
    return f"int {argument}"


def _bad(what: str) -> SsmExportError:
    return SsmExportError(
        errors.BAD_KERNEL_IMAGE,
        f"the kernel image cannot be used: {what}",
        fix="compile the kernels again: ssm-export kernels BUNDLE --target TARGET -o FILE.ssmk",
    )
