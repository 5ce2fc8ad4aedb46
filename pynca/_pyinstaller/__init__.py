"""What PyInstaller must know to pack pynca into a program; it asks by the entry point ``pyinstaller40``."""

from __future__ import annotations

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """Return the folder of ``hook-pynca.py``."""
    return [str(Path(__file__).parent)]
