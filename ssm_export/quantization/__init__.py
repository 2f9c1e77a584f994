"""Quantizes a bundle: number formats, rounding, calibration, recipes and their reports."""
