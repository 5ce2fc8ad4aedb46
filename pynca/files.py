"""Write a file whole or not at all, and never over what somebody else has made; open one that somebody named.

Every file that pynca writes goes through `atomic_path`. What is there already is replaced only if `pynca.seal` knows
it, or if the caller says so; an input never is.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import stat
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

StrPath = str | os.PathLike[str]


class Occupied(FileExistsError):
    """A file that stays, because pynca did not write it.

    Attributes
    ----------
    path : path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(
            f"{path} is there already and was not written by pynca, or was changed since; choose another name, or give "
            "overwrite=True"
        )


class IsInput(ValueError):
    """A file that is to be written, but is read as well."""


# --- what may be written ------------------------------------------------------------------------------


def check_writable(
    path: StrPath, *, overwrite: bool = False, inputs: Iterable[StrPath] = (), parents: bool = False
) -> None:
    """Refuse a file to write, before the work whose result it is to hold.

    Parameters
    ----------
    path : str or path-like
        A link stands for what it names. A pipe or a character device is written into; what is written by pynca and
        was not changed since is replaced.
    overwrite : bool
        Replace whatever file is there, unless it is an input. Default False.
    inputs : iterable of str or path-like
        What is read, under whatever name it is written here.
    parents : bool
        Folders that are missing will be made. Default False.

    Raises
    ------
    FileExistsError
        There is a file that pynca did not write, or that was changed since.
    ValueError
        It is one of the inputs.
    OSError
        There is no folder to write into, or nothing may be written there; or it is a folder itself, a socket or a disk.
    """
    check_all([path], overwrite=overwrite, inputs=inputs, parents=parents)


def check_all(
    paths: Iterable[StrPath], *, overwrite: bool = False, inputs: Iterable[StrPath] = (), parents: bool = False
) -> None:
    """`check_writable` for several files that have the same inputs, whose status is then asked once."""
    read = {_identity(status) for status in map(_status, inputs) if status is not None}
    for path in map(Path, paths):
        status = _status(path)
        if status is None:
            _check_folder(path, parents=parents)
        elif stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(f"{path} cannot be written: it is a folder; give the name of a file")
        elif stat.S_ISREG(status.st_mode):
            if _identity(status) in read:
                raise IsInput(f"{path} is an input and would be overwritten; choose another name")
            if _descriptor(path) is None:
                if not overwrite and not _is_sealed(path):
                    raise Occupied(path)
                _check_folder(path)
        elif not _is_stream(status):
            raise OSError(f"{path} cannot be written: it is neither a file nor a pipe; give the name of a file")


def _check_folder(path: Path, *, parents: bool = False) -> None:
    """Refuse a file in whose folder none can be made."""
    target = _target(path)
    if target.is_symlink():
        raise OSError(f"{path} cannot be written: it is a link that leads back to itself; choose another name")
    there = folder = target.parent
    while not there.exists() and there != there.parent:
        there = there.parent
    if there.exists() and not there.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {there} is not a folder; choose another name")
    if there != folder and not parents:
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {folder}; create it first")
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written: there is no permission to write into the folder {there}")


def _is_sealed(path: Path) -> bool:
    from .seal import is_sealed

    return is_sealed(path)


def _status(path: StrPath) -> os.stat_result | None:
    """Return the status of what a path names in the end; None where there is nothing."""
    try:
        return os.stat(path)
    except (OSError, ValueError):  # ValueError: a name with a null character
        return None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_stream(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) or stat.S_ISFIFO(status.st_mode)


def _target(path: Path) -> Path:
    """Return the path at the end of links; one that is no link stays as it was given."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _descriptor(path: Path) -> int | None:
    """Return the number of this process's open file that a path such as ``/dev/stdout`` names."""
    for _ in range(8):  # links to links
        folder = os.path.realpath(path.parent)
        if folder in ("/dev/fd", f"/proc/{os.getpid()}/fd") and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder, os.readlink(path))
    return None


# --- writing ------------------------------------------------------------------------------------------


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
    if stat.S_ISFIFO(mode):
        _let_go(path)
    for test, what in _SPECIAL.items():
        if test(mode):
            raise ValueError(f"{os.fspath(path)!s} is {what}; it must be a file, so write the content to one first")


def _let_go(pipe: StrPath) -> None:
    """Open a pipe and close it, so that a process that waits to write into it ends instead of waiting for ever."""
    with contextlib.suppress(OSError):
        os.close(os.open(pipe, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)))


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


def open_once(path: StrPath) -> BufferedReader:
    """`open_input` for what is read once, from begin to end: a pipe that the shell has opened (``<(ls)``) will do."""
    return open(path, "rb") if _descriptor(Path(path)) is not None else open_input(path)


_SPECIAL: Mapping[Callable[[int], bool], str] = {
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


@contextlib.contextmanager
def atomic_path(
    path: StrPath, *, overwrite: bool = False, inputs: Iterable[StrPath] = (), seal: bool = True
) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it takes the place of ``path`` when the block succeeds.

    When the block fails, what was written is removed and ``path`` stays as it was. The yielded name
    ends like ``path``'s, so that a format chosen by suffix is the same. A `pynca.seal.BLANK` in what was written is
    filled in. Where ``path`` is a pipe or a device, the finished bytes are written into it.

    Parameters
    ----------
    path : str or path-like
        The file to write.
    overwrite, inputs
        As of `check_writable`.
    seal : bool
        Look for a seal to fill in. Default True.

    Raises
    ------
    OSError, ValueError
        As `check_writable`; or the disk is full, for example: the error names ``path``.
    """
    path, inputs = Path(path), tuple(inputs)
    check_writable(path, overwrite=overwrite, inputs=inputs)
    status = _status(path)
    if status is not None and (_is_stream(status) or _descriptor(path) is not None):
        import shutil
        import tempfile

        with tempfile.TemporaryDirectory(prefix="pynca-") as folder:
            temporary = Path(folder, _tail(path))
            with naming(path, temporary):
                yield temporary
                _finish(temporary, seal)
                with open(temporary, "rb") as content, _stream(path) as stream:
                    shutil.copyfileobj(content, stream)
        return
    target = _target(path)
    temporary = target.with_name(f".{_owner()}-{os.urandom(4).hex()}.{_tail(path)}")
    try:
        with naming(path, temporary, target):
            yield temporary
            _finish(temporary, seal)
            check_writable(path, overwrite=overwrite, inputs=inputs)  # again: work can take hours
            if status is not None:
                os.chmod(temporary, stat.S_IMODE(status.st_mode))
            os.replace(temporary, target)
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
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(f"{folder} is not a folder; choose another name") from None


def _finish(temporary: Path, has_seal: bool) -> None:
    if has_seal:
        from .seal import seal

        seal(temporary)


@contextlib.contextmanager
def naming(path: StrPath, *standing_in: Path) -> Iterator[None]:
    """Let errors of the disk name a file, where they name none, or one that stands for it while it is written."""
    try:
        yield
    except OSError as error:
        names = {str(name) for name in (error.filename, error.filename2) if name is not None}
        if isinstance(error, Occupied) or names - set(map(str, standing_in)):
            raise
        if error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        if str(path) in str(error):
            raise
        raise OSError(f"{path} cannot be written: {error}") from error


@contextlib.contextmanager
def _stream(path: Path) -> Iterator[BinaryIO]:
    """Open a pipe or a device to write into; a pipe that nobody reads is waited for a while."""
    number = _descriptor(path)
    if number is not None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()  # what was printed before comes before
        descriptor = os.dup(number)
    else:
        descriptor = _opened(path)
    with open(descriptor, "wb") as stream:
        yield stream


_PATIENCE = 10.0  # seconds


def _opened(path: Path) -> int:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > until:
                raise OSError(f"{path} cannot be written: it is a pipe, and nobody reads it") from None
            time.sleep(0.05)
        else:
            if hasattr(os, "set_blocking"):
                os.set_blocking(descriptor, True)
            return descriptor


# --- what a process that was killed leaves ------------------------------------------------------------

_OLD = 86_400  # seconds: a file of another machine's process, of which nothing is known here, may then go
# Before names said whose they are they had 16 digits
_TEMPORARY = re.compile(r"\.(?:([0-9a-f]{8})-([0-9a-f]+)-([0-9a-f]+)-[0-9a-f]{8}|[0-9a-f]{16})\.(.*)", re.DOTALL)


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove what processes that are gone have left beside these files while they wrote them."""
    tails: dict[Path, set[str]] = {}
    for path in paths:
        tails.setdefault(_target(path).parent, set()).add(_tail(path))
    for folder, names in tails.items():
        with contextlib.suppress(OSError):  # there may be no folder yet, and what cannot be removed does no harm
            for file in list(folder.iterdir()):
                found = _TEMPORARY.fullmatch(file.name)
                if found and found[4] in names and _is_abandoned(file, found):
                    file.unlink()


def _is_abandoned(file: Path, found: re.Match[str]) -> bool:
    if found[1] == _machine():
        return not _lives(int(found[2], 16), int(found[3], 16))
    return found[1] is None or time.time() - file.lstat().st_mtime > _OLD


def _tail(path: Path) -> str:
    """Return the end of a name: a long one and a prefix may be longer than a file system allows."""
    return path.name[-24:]


def _owner() -> str:
    """Return what tells this process from all others: the machine since it started, the number, the begin."""
    return f"{_machine()}-{os.getpid():x}-{_begin_of(os.getpid()):x}"


@functools.cache
def _machine() -> str:
    """Return what stands for this machine since it was started, as far as its numbers of processes are of one kind."""
    import platform

    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return f"{zlib.crc32(repr(parts).encode()):08x}"


def _begin_of(process: int) -> int:
    """Return when a process began, in any unit above 0; 0 where that is not known, or it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return 0 if fields[0] in ("Z", "X") else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0


def _lives(process: int, begin: int) -> bool:
    if Path(f"/proc/{process}/stat").exists():
        return _begin_of(process) == begin
    if os.name == "nt":  # there, the call below would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


# --- one at a time ------------------------------------------------------------------------------------

_LOCK = ".pynca.lock"


@contextlib.contextmanager
def locked(folder: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Have a folder to write into for oneself, which is made if need be.

    The lock is on a hidden file in it, which is gone afterwards, and so is the folder if it was made and stayed empty.
    Where the file system has no locks there is none, and whoever comes last is right.

    Parameters
    ----------
    folder : path
    waiting : callable
        Called once if somebody else has it, before this waits; may raise an error instead.
    """
    above = folder.absolute()
    made = []
    while not above.exists():
        made.append(above)
        above = above.parent
    make_folder(folder)
    try:
        descriptor = _locked(folder / _LOCK, waiting)
        try:
            yield
        finally:
            if descriptor is not None:
                with contextlib.suppress(OSError):  # Windows keeps what is open
                    (folder / _LOCK).unlink()  # before it is let go: whoever waits looks whether it is still there
                os.close(descriptor)
    finally:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()


def _locked(path: Path, waiting: Callable[[], object]) -> int | None:
    """Return the descriptor of a file that is locked; None where there are no locks."""
    kind = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    told = False
    while True:
        try:
            descriptor = os.open(path, kind, 0o666)
        except OSError:
            if path.parent.exists():
                return None
            make_folder(path.parent)  # who had it has just removed what stayed empty
            continue
        got = False
        try:
            got = _try_lock(descriptor)
            status = _status(path)
            if got and status is not None and _identity(status) == _identity(os.fstat(descriptor)):
                kept, descriptor = descriptor, -1
                return kept
        except OSError:
            return None
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        if not got:
            if not told:
                waiting()
                told = True
            time.sleep(0.1)


def _try_lock(descriptor: int) -> bool:
    """Lock a file, or tell that somebody else has."""
    module: Any
    try:
        if os.name == "nt":
            import msvcrt as module

            module.locking(descriptor, module.LK_NBLCK, 1)
        else:
            import fcntl as module

            module.flock(descriptor, module.LOCK_EX | module.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True
