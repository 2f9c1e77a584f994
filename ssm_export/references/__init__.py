"""Models to compare with, in float64: ours in torch, and transformers'.

Both implement :class:`ssm_export.verification.reference.Reference`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssm_export import errors
from ssm_export.checkpoints import open_checkpoint
from ssm_export.errors import SsmExportError
from ssm_export.models import family
from ssm_export.models.base import DTYPES
from ssm_export.references.torch_model import TorchReference
from ssm_export.trace import build_fake
from ssm_export.weights import Weights

if TYPE_CHECKING:
    from ssm_export.bundle import Bundle
    from ssm_export.checkpoints import Checkpoint
    from ssm_export.verification.reference import Reference

__all__ = ["TorchReference", "make_reference"]


def make_reference(bundle: Bundle, name: str, source: str) -> tuple[Checkpoint, Reference]:
    """Open a checkpoint and make the reference ``torch`` or ``transformers`` of a bundle from it.

    The caller closes the checkpoint. ``HASH_MISMATCH`` when the checkpoint is not the one that the
    bundle was made from.
    """
    checkpoint = open_checkpoint(source)
    try:
        if checkpoint.weights_sha256() != bundle.manifest.source["weights_sha256"]:
            raise SsmExportError(
                errors.HASH_MISMATCH,
                "these are not the weights that the bundle was made from",
                where=source,
                fix="give the right folder with --checkpoint",
            )
        dtype = DTYPES[bundle.manifest.precision]
        if name == "transformers":
            from ssm_export.references.transformers_model import TransformersReference

            return checkpoint, TransformersReference(checkpoint, bundle.manifest.states, dtype)
        model_class = family(checkpoint.model_type)
        config = model_class.config_class.from_dict(checkpoint.config)
        model, _ = build_fake(lambda: model_class(config, dtype=dtype))
        return checkpoint, TorchReference(model, Weights(model, checkpoint))
    except BaseException:
        checkpoint.close()
        raise
