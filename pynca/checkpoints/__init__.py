"""Weights trained elsewhere: one module per family, and a PyTorch archive reader that runs no code."""

from __future__ import annotations

from .med_nca import import_checkpoint

__all__ = ["import_checkpoint"]
