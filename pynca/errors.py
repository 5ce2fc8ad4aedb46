"""Errors as sentences."""

from __future__ import annotations


def sentence(error: object) -> str:
    """Say what went wrong, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    text = " ".join(str(error).split())
    if isinstance(error, Exception) and " " not in text:  # a KeyError's text is the key
        return f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text
