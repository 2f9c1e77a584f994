"""What a GPU has to be asked: are the kernels right on it, and how fast are they.

Run from a source tree, with nothing installed but Python, numpy, torch and Triton::

    python plugins/gpu_check [--quick] [--json FILE] [--op NAME] [--mamba-ssm PATH]

Correctness comes first, every kernel against its operator's float64 reference; when anything is
red, what is red is printed and nothing is timed.
"""
