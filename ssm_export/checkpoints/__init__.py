"""Where weights come from: checkpoint folders and hub ids, read tensor by tensor.

Whatever the layout on disk, the rest of the package sees transformers' names and config keys.
"""

from __future__ import annotations

from ssm_export.checkpoints.checkpoint import Checkpoint, LazyTensor
from ssm_export.checkpoints.folder import open_folder
from ssm_export.checkpoints.hub import open_checkpoint
from ssm_export.checkpoints.names import without_tied_head

__all__ = ["Checkpoint", "LazyTensor", "open_checkpoint", "open_folder", "without_tied_head"]
