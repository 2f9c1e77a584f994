"""Layers with explicit state: norms, projections and one mixer per recurrence.

A layer holds its weights the way the graph multiplies with them, and says for each one which
stored tensor it comes from (:class:`ssm_export.layers.stored.Stored`). A mixer's ``forward`` takes
its past states and gives its present ones; nothing is kept on ``self``.
"""
