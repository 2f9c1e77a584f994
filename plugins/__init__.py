"""GPU code of ssm-export: Triton kernels, their launch plans, and the TensorRT plugin library.

Imported as ``ssm_export_plugins``, from a wheel or from the folder ``plugins`` of a checkout
(:func:`ssm_export.resources.load_plugins`).
"""
