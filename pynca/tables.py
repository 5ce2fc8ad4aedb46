"""CSV files: one way to write a table, which a spreadsheet opens without running anything in it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .files import atomic_path
from .seal import TEXT
from .volumes import SUFFIXES

Cell = str | int | float | None

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # and their wide forms
_OTHERS = (*SUFFIXES, ".nii.gz", ".safetensors", ".pth", ".pt", ".json", ".html", ".htm", ".gif")


def check_table(path: str | os.PathLike[str]) -> None:
    """Refuse the name of a table that is one of an image, a model or a page.

    Raises
    ------
    ValueError
        It is, most likely by a slip.
    """
    if Path(path).name.lower().endswith(_OTHERS):
        raise ValueError(f"{path} cannot be written: it is not named like a table; the name of one ends in .csv")


def write_table(
    path: str | os.PathLike[str],
    columns: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
    digits: int | None = None,
) -> None:
    r"""Write a CSV file in UTF-8, whole or not at all; the same rows give the same bytes.

    Text that a spreadsheet would take for a formula gets an apostrophe in front, as OWASP recommends; bytes of a file's
    name that are no text become ``\udc..``; None and NaN are empty cells. The last column is empty and has the file's
    seal (`pynca.seal`) for a title: a table has no other place for it.

    Parameters
    ----------
    path : str or path-like
    columns : sequence of str
    rows : iterable of sequences
        As many cells each.
    overwrite, inputs
        As of `pynca.files.check_writable`.
    digits : int, optional
        Of numbers, behind the point. Default: as many as tell them apart.

    Raises
    ------
    ValueError
        The name is one of an image, a model or a page; or the table would replace an input.
    OSError
        The file cannot be written, or is another's.
    """
    check_table(path)
    lines = [",".join((*columns, TEXT)), *(",".join((*(_cell(cell, digits) for cell in row), "")) for row in rows)]
    with atomic_path(path, overwrite=overwrite, inputs=inputs) as beside:
        beside.write_text("\n".join((*lines, "")), encoding="utf-8", errors="backslashreplace", newline="")


def _cell(value: Cell, digits: int | None) -> str:
    if value is None or value != value:  # NaN
        return ""
    if not isinstance(value, str):
        return f"{value:.{digits}f}" if digits is not None and isinstance(value, float) else str(value)
    text = f"'{value}" if value.startswith(_FORMULA) else value
    return f'"{text.replace(chr(34), chr(34) * 2)}"' if any(c in text for c in ',"\r\n') else text
