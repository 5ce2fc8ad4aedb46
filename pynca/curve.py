"""How large a label is over the frames of a film, as a picture in a page: SVG without a style or script of its own."""

from __future__ import annotations

import math
from html import escape

from .statistics import Cycle, LabelStatistics

_WIDTH, _HEIGHT = 440, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 16, 22, 40  # margins around the curve
_LEAST, _MOST = 1e-12, 1e15  # of a size: a manifest can say anything
_TICKS = 5  # at most, on either axis
_DOTS = 60  # frames up to which each has a dot


def svg(cycle: Cycle) -> str:
    """Return the curve of a label's volume, from 0 up, with its largest and smallest frame marked.

    Colours are those of the text around it, so that it is readable on light and dark pages.
    """
    unit = "voxels" if cycle.largest.volume_ml is None else "ml"
    last, top = max(len(cycle.frames) - 1, 1), max(size_of(cycle.largest), _LEAST)

    def x(frame: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * frame / last

    def y(size: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * size / top

    places = [(x(n), y(size_of(frame))) for n, frame in enumerate(cycle.frames)]
    grid = [_rule(y(size), f"{size:g}") for size in _ticks(top)]
    steps = [_text(x(int(n)), _HEIGHT - _BOTTOM + 16, f"{n:g}") for n in _ticks(last, least=1.0)]
    dots = [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2"/>' for a, b in places if len(places) <= _DOTS]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    marks = []
    for name, frame in (("ED", cycle.largest), ("ES", cycle.smallest)):
        n = cycle.frames.index(frame)
        text = f"{name if cycle.ventricle else ''} {_told(frame)}".strip()
        marks.append(_mark(*places[n], text, below=frame is not cycle.largest))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(said(cycle))}" fill="currentColor" '
        f'font-size="13" font-family="sans-serif">'
        f'<g opacity="0.65">{"".join(grid)}<g text-anchor="middle">{"".join(steps)}</g>'
        f"{_text(4, 12, unit)}"
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:g}" y="{_HEIGHT - 4}" text-anchor="middle">frame</text></g>'
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
        f"{''.join(dots)}{''.join(marks)}</svg>"
    )


def said(cycle: Cycle) -> str:
    """Say in words what the curve shows: every volume, the largest and the smallest, and the ejection fraction."""
    unit = "voxels" if cycle.largest.volume_ml is None else "ml"
    high, low = ("end-diastole", "end-systole") if cycle.ventricle else ("largest", "smallest")
    sizes = ", ".join(map(_told, cycle.frames))
    text = f"{cycle.name} {sizes} {unit} in {len(cycle.frames)} frames; {high} {_told(cycle.largest)} {unit} in frame "
    text += f"{cycle.largest.frame}, {low} {_told(cycle.smallest)} {unit} in frame {cycle.smallest.frame}"
    if cycle.ejection_fraction is not None:
        text += f", ejection fraction {100 * cycle.ejection_fraction:.1f} %"
    if cycle.missing:
        text += f", no ejection fraction, since {cycle.missing}"
    empty = sum(frame.voxels == 0 for frame in cycle.frames)
    return text + (f", nothing found in {empty} of them" if empty else "")


def size_of(label: LabelStatistics) -> float:
    """Return a label's volume in ml, or its voxels where nobody knows how large they are."""
    return float(max(0, min(label.voxels if label.volume_ml is None else label.volume_ml, _MOST)))


def _told(label: LabelStatistics) -> str:
    return f"{label.voxels}" if label.volume_ml is None else f"{label.volume_ml:.3f}"


def _ticks(top: float, least: float = 0.0) -> list[float]:
    """Return round numbers from 0 to the top."""
    rough = top / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(least, next(power * n for n in (1, 2, 5, 10) if power * n >= rough * (1 - 1e-9)))
    return [n * step for n in range(int(top / step + 1e-9) + 1)]


def _rule(y: float, text: str) -> str:
    line = f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity="0.35"/>'
    return f'{line}<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _mark(x: float, y: float, text: str, *, below: bool) -> str:
    """Return a ring around a point, with its value beside it, where there is room."""
    half = (_LEFT + _WIDTH - _RIGHT) / 2
    anchor, aside = ("start", 7) if x < half else ("end", -7)
    ring = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="none" stroke="currentColor" stroke-width="1.5"/>'
    height = y + 18 if below and y + 22 < _HEIGHT - _BOTTOM else max(y - 7, 12)
    return (
        f'{ring}<text x="{x + aside:.1f}" y="{height:.1f}" text-anchor="{anchor}" font-weight="600">'
        f"{escape(text)}</text>"
    )
