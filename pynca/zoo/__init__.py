"""Models that come with the package: one ``NAME.safetensors`` each, and its card ``NAME.md``."""

from __future__ import annotations

from pathlib import Path

DEFAULT = "hippocampus"
_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the bundled models."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def find(name: str) -> Path | None:
    """Return the file of a bundled model, or None if there is none of that name."""
    return _FOLDER / f"{name}.safetensors" if name in names() else None
