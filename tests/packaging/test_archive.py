"""An archive that was cut short, changed or mistaken for one is named before it is unpacked."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssm_export import errors
from ssm_export.cli import group
from ssm_export.cli.running import run
from ssm_export.errors import SsmExportError
from ssm_export.packaging import check_archive


def code_of(path) -> errors.ErrorCode:
    with pytest.raises(SsmExportError) as raised:
        check_archive(path)
    assert raised.value.fix
    return raised.value.code


def test_a_whole_one_passes(packs, capsys):
    assert check_archive(packs("rtx-any"))["target"] == "rtx-any"
    assert run(group, ["package", str(packs("rtx-any")), "--check"]) == 0
    assert "as they were packed" in capsys.readouterr().out


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(share=st.floats(0, 1, exclude_max=True))
def test_one_that_was_cut_short(packs, tmp_path, share):
    """Wherever it ends before its last file's end."""
    content = packs("rtx-any").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        last = tar.getmembers()[-1]
    cut = tmp_path / "cut.tar"
    cut.write_bytes(content[: int((last.offset_data + last.size) * share)])
    assert code_of(cut) in (errors.NOT_A_PACK, errors.PACK_CHANGED)


def test_a_changed_byte_in_any_file(packs, tmp_path):
    content = packs("rtx-any").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = tar.getmembers()
    changed = tmp_path / "changed.tar"
    for member in members[1:]:
        bad = bytearray(content)
        bad[member.offset_data + member.size // 2] ^= 0x40
        changed.write_bytes(bad)
        assert code_of(changed) is errors.PACK_CHANGED, member.name


def test_a_file_that_was_added(packs, tmp_path):
    added = tmp_path / "added.tar"
    added.write_bytes(packs("rtx-any").read_bytes())
    with tarfile.open(added, "a") as tar:
        item = tarfile.TarInfo("toy-rtx-any/wheels/another.whl")
        tar.addfile(item, io.BytesIO())
    assert code_of(added) is errors.PACK_CHANGED


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\0" * 10240, b"words " * 4000])
def test_other_files(tmp_path, content):
    other = tmp_path / "other.tar"
    other.write_bytes(content)
    assert code_of(other) is errors.NOT_A_PACK


def test_another_tar(tmp_path):
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("something/else"), io.BytesIO())
    assert code_of(tmp_path / "other.tar") is errors.NOT_A_PACK
    assert code_of(tmp_path / "none.tar") is errors.NO_SUCH_PATH
