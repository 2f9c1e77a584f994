"""Models to compare with, in float64: ours in torch, and transformers'.

Both implement :class:`ssm_export.verification.reference.Reference`.
"""
