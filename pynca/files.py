"""Write a file whole or not at all, and open one that somebody named."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse a path that is neither a file nor a folder; one that is not there passes.

    A file is opened more than once, for its digest, its header and its voxels, and has a size: what comes out of a
    pipe is gone after the first time, and a device may never end.

    Raises
    ------
    ValueError
        It is a named pipe, a socket or a device, or a link to one.
    OSError
        It cannot be looked at.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    for test, what in _SPECIAL.items():
        if test(mode):
            raise ValueError(f"{os.fspath(path)!s} is {what}; it must be a file, so write the content to one first")


def open_input(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a file to read its bytes.

    Raises
    ------
    ValueError
        As `check_regular`.
    OSError
        It is not there, is a folder or cannot be read.
    """
    check_regular(path)
    return open(path, "rb")


_SPECIAL: Mapping[Callable[[int], bool], str] = {
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it takes the place of ``path`` when the block succeeds.

    When the block fails, what was written is removed and ``path`` stays as it was. The yielded name
    ends like ``path``'s, so that a format chosen by suffix is the same.

    Parameters
    ----------
    path : str or path-like
        The file to write.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        There is no folder to write into, or ``path`` is a folder itself.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}; create it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} cannot be written: it is a folder; give the name of a file")
    # Not from tempfile: its files can be read by their owner only, and would stay so. Only the end of
    # the name, because a long name and a prefix may be longer than a file system allows.
    temporary = path.with_name(f".{os.urandom(8).hex()}.{_tail(path)}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # after the replacement there is nothing left to remove
            temporary.unlink()


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, which may be more than Python's calls may be nested."""
    missing = []
    while not path.is_dir() and path != path.parent:
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove what a process that was killed while it wrote one of these files has left beside it."""
    tails: dict[Path, set[str]] = {}
    for path in paths:
        tails.setdefault(path.parent, set()).add(_tail(path))
    for folder, names in tails.items():
        with contextlib.suppress(OSError):  # there may be no folder yet, and what cannot be removed does no harm
            for file in list(folder.iterdir()):
                found = _TEMPORARY.fullmatch(file.name)
                if found and found[1] in names:
                    file.unlink()


_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.(.*)", re.DOTALL)


def _tail(path: Path) -> str:
    return path.name[-24:]
