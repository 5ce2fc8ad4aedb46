"""One progress bar on a terminal; nothing in a pipe."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType

from .errors import printable

_CELLS = 24


class Progress:
    """A bar on standard error that is redrawn at most ten times a second and erased at the end.

    Parameters
    ----------
    total : int
        Number of units of work.
    label : str
        Text before the bar.
    enabled : bool
        Show it at all; it is shown only where standard error is a terminal. Default True.
    report : callable, optional
        Called with the share that is done, from 0 to 1, whenever something is.
    """

    def __init__(
        self, total: int, label: str = "", *, enabled: bool = True, report: Callable[[float], object] | None = None
    ) -> None:
        self._total = max(total, 1)
        self._done = 0.0
        self._label = label
        self._report = report
        self._visible = enabled and sys.stderr is not None and sys.stderr.isatty()
        self._start = time.monotonic()
        self._drawn = 0.0

    def __enter__(self) -> Progress:
        self._draw(force=True)
        return self

    def advance(self, units: int = 1, label: str | None = None) -> None:
        """Count finished units and change the label."""
        self._done += units
        if self._report is not None:
            self._report(min(self._done / self._total, 1.0))
        self._label = self._label if label is None else label
        self._draw(force=label is not None)  # a new label stands for as long as its file takes

    def show(self, share: float, label: str) -> None:
        """Show a share of the whole that is done, and a label."""
        self._done = share * self._total
        self._label = label
        self._draw()

    def erase(self) -> None:
        """Clear the line, so that something else can be printed."""
        if self._visible:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.erase()

    def _draw(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not self._visible or (now - self._drawn < 0.1 and not force):
            return
        self._drawn = now
        done = min(self._done / self._total, 1.0)
        bar = "#" * round(done * _CELLS)
        left = f"{_duration((now - self._start) * (1 - done) / done)} left" if self._done else ""
        room = max(_columns() - _CELLS - 24, 8)  # a line that is too long wraps and cannot be redrawn
        text = printable(self._label)
        label = text if len(text) <= room else f"...{text[3 - room :]}"
        sys.stderr.write(f"\r{label} [{bar:<{_CELLS}}] {done:4.0%} {left}\x1b[K")
        sys.stderr.flush()


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):  # a terminal that has no size, such as an IDE's
        return 80
