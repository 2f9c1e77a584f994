"""A bundle made ready to leave: a pack for one device, or a model repository for a server."""

from ssm_export.packaging.archive import check_archive
from ssm_export.packaging.pack import PackReport, make_pack
from ssm_export.packaging.triton_repository import RepositoryReport, make_repository

__all__ = [
    "PackReport",
    "RepositoryReport",
    "check_archive",
    "make_pack",
    "make_repository",
]
