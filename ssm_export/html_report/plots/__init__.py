"""Plots as inline SVG: each a function from numbers to markup, styled by the page's style sheet."""
