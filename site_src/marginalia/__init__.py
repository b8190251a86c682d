"""Marginalia: annotated Python modules become pages that prove themselves."""

__version__ = "0.1.0"
