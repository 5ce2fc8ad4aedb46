"""Errors as sentences, and foreign text as what can be shown."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable

_LONGEST = 500  # characters of a sentence: a path or two, and what is wrong
_QUOTED = 100  # characters of what is quoted from a file


class NotMadeFor(ValueError):
    """A model was not made for an image (`pynca.inputs.check_input`)."""


class NotFinite(ValueError):
    """A run of a model reached NaN or infinity, so that it has no result."""


def sentence(error: object, source: object = None) -> str:
    """Say what went wrong, on one line of at most 500 characters without control characters.

    Parameters
    ----------
    error : exception or str
    source : path, optional
        What it went wrong with; it stands in front where the sentence does not name it.
    """
    text = printable(" ".join(_said(error).split()))
    if source is not None:
        name = printable(str(source))
        text = text if name in text else f"{name}: {text}"
    return shortened(text, _LONGEST)


def _said(error: object) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{_path(error.filename)}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = str(error).strip()
    if isinstance(error, Exception) and len(text.split()) < 2:  # a KeyError's text is the key
        return f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text


def _path(name: object) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def brief(error: object) -> str:
    """Return what an error says, short enough to be quoted in another; `sentence` does not name the type here."""
    return shortened(" ".join(str(error).split()), 300)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a clause that names what is spelt like a word, or nothing."""
    import difflib

    alike = difflib.get_close_matches(word[:100], list(known), n=1)
    return f"; did you mean {alike[0]}?" if alike else ""


def printable(text: str) -> str:
    """Return text on one line, without what would command a terminal or turn the direction of reading.

    Newlines and tabs become spaces; other control characters, marks of direction and halves of surrogate pairs
    become U+FFFD.
    """
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def shortened(text: str, longest: int) -> str:
    """Return text of at most so many characters: its begin and its end, which says what would be right."""
    if len(text) <= longest:
        return text
    end = (longest - 5) // 3
    return f"{text[: longest - 5 - end]} ... {text[-end:]}"


def quoted(value: object) -> str:
    """Return a value as Python spells it, short enough to be quoted in a sentence."""
    try:
        return shortened(_repr.repr(value), _QUOTED)
    except ValueError:  # Python refuses to write a number of thousands of digits
        return "a number of thousands of digits"


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60
_repr.maxlevel = 3
