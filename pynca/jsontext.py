"""JSON that comes from elsewhere: read strictly, and checked for type before anything of it is used.

Whatever a text holds, it is read or refused with a ValueError of one short sentence: too large, not UTF-8, nested too
deeply, numbers of thousands of digits or beyond float64, a name twice, half a surrogate pair, a missing or unknown
field, a value of another type.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import stat
import types
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import quoted

_DIGITS = 20  # 2**64 - 1, the largest seed, has as many
_LEVELS = 32  # pynca's own files have six at most
_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

_T = TypeVar("_T")


# --- text to values -----------------------------------------------------------------------------------


def read(path: str | os.PathLike[str], largest: int, *, surrogates: bool = False) -> Any:
    """Read a JSON file in UTF-8, or in UTF-16 with a byte order mark.

    Parameters
    ----------
    path : str or path-like
    largest : int
        Bytes that it may have.
    surrogates : bool
        Whether text may hold halves of surrogate pairs, as names of files do that are no text. Default False.

    Raises
    ------
    ValueError
        It is not JSON, or holds what cannot be used; the sentence does not name the file.
    OSError
        It cannot be read.
    """
    return parse(decoded(content(path, largest)), surrogates=surrogates)


def content(path: str | os.PathLike[str], largest: int) -> bytes:
    """Return the bytes of a regular file of at most so many; a pipe or a device, which may never end, is refused."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        block = b"" if status.st_size > largest else file.read(largest + 1)
    if max(status.st_size, len(block)) > largest:
        raise ValueError(f"it has more than {largest} bytes")
    return block


def decoded(block: bytes) -> str:
    """Return text in UTF-8, or with the byte order mark of another encoding."""
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if block.startswith(mark)), "utf-8")
    try:
        return block.decode(encoding)
    except UnicodeDecodeError as problem:
        raise ValueError(f"it is not text at byte {problem.start}; it must be in UTF-8") from None


def parse(text: str, *, infinite: bool = False, surrogates: bool = False) -> Any:
    """Return what a JSON text says.

    Parameters
    ----------
    text : str
    infinite : bool
        Whether numbers may be NaN or infinite, which JSON does not know. Default False.
    surrogates : bool
        As of `read`.

    Raises
    ------
    ValueError
        It is not JSON, or holds what cannot be used.
    """
    decoder = json.JSONDecoder(
        object_pairs_hook=_unique,
        parse_int=_integer,
        parse_float=float if infinite else _real,
        parse_constant=float if infinite else _constant,
    )
    try:
        value = decoder.decode(text)
    except json.JSONDecodeError as problem:
        raise ValueError(f"it is not JSON at character {problem.pos}: {problem.msg}") from None
    except RecursionError:
        raise ValueError(_NESTED) from None
    _check(value, surrogates)
    return value


_NESTED = "it is nested too deeply"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {quoted(next(n for n in names if names.count(n) > 1))} twice")
    return found


def _integer(digits: str) -> int:
    """Refuse long numbers before they are converted, which takes quadratic time in some Pythons."""
    if len(digits) > _DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} digits; {_DIGITS} are the most that any needs")
    return int(digits)


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {quoted(text)}, which is too large")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}; JSON has no such number")


def _check(value: Any, surrogates: bool) -> None:
    """Refuse what is nested deeper than anything that pynca writes, and text that no file can be written with."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _LEVELS:
            raise ValueError(_NESTED)
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += [*one, *one.values()]
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str) and not surrogates and _SURROGATE.search(one):
                raise ValueError(f"it holds {quoted(one)}; text must not hold half a surrogate pair")
        level = below


# --- values to dataclasses ----------------------------------------------------------------------------


def build(cls: type[_T], value: object, what: str = "") -> _T:
    """Return a dataclass made from a JSON object, with every field of the type that the class declares.

    Lists become tuples where a tuple is declared; a bool is no number.

    Parameters
    ----------
    cls : type
        A dataclass of numbers, texts, lists, mappings and dataclasses.
    value : object
        What `parse` returned.
    what : str
        What the sentences call it, such as ``"preparation"``.

    Raises
    ------
    ValueError
        A field is missing, unknown or of another type, or the class refuses a value.
    """
    kinds, needed = names_of(cls)
    check_names(value, kinds, needed, what or "it")
    assert isinstance(value, dict)
    made = {name: typed(kinds[name], item, f"{what}.{name}" if what else name) for name, item in value.items()}
    return cls(**made)


def check_names(value: object, known: Container[str], needed: Iterable[str], what: str) -> None:
    """Refuse what is no JSON object, or has a field that is not known, or not one that it must have."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {quoted(value)}; it must be a JSON object")
    for name in value:
        if name not in known:
            raise ValueError(f"{what} has the unknown field {quoted(name)}")
    for name in sorted(needed):
        if name not in value:
            raise ValueError(f"{what} misses {name!r}")


@lru_cache(maxsize=64)
def _names_of(cls: Any) -> tuple[Mapping[str, Any], Sequence[str]]:
    needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}, needed


def names_of(cls: type) -> tuple[Mapping[str, Any], Sequence[str]]:
    """Return the type of each field of a dataclass, and which ones have no default."""
    return _names_of(cls)


def typed(kind: Any, value: Any, what: str) -> Any:
    """Return a value as a type, or refuse it; `build` describes what becomes what."""
    for option in _options(kind):
        origin, arguments = get_origin(option) or option, get_args(option)
        if option is Any or (option is type(None) and value is None):
            return value
        if origin is Literal and isinstance(value, (str, int)) and value in arguments:
            return value
        if is_dataclass(option) and isinstance(option, type) and isinstance(value, dict):
            return build(option, value, what)
        if option is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if option in (str, bool, int) and type(value) is option:
            return value
        if origin is tuple and isinstance(value, list) and (arguments[-1] is ... or len(arguments) == len(value)):
            inside = arguments[:1] * len(value) if arguments[-1] is ... else arguments
            return tuple(typed(k, v, f"{what}[{n}]") for n, (k, v) in enumerate(zip(inside, value, strict=True)))
        if origin in (list, Sequence) and isinstance(value, list):
            return [typed(arguments[0], item, f"{what}[{n}]") for n, item in enumerate(value)]
        if origin is Mapping and isinstance(value, dict):
            return {name: typed(arguments[1], item, f"{what}[{quoted(name)}]") for name, item in value.items()}
    raise ValueError(f"{what} is {quoted(value)}; it must be {' or '.join(map(_named, _options(kind)))}")


def _options(kind: Any) -> Iterator[Any]:
    if get_origin(kind) in (Union, types.UnionType):
        yield from get_args(kind)
    else:
        yield kind


def _named(kind: Any) -> str:
    """Say what a type is in JSON."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple and arguments[-1] is not ...:
        return f"a list of {len(arguments)}, each {_named(arguments[0])}"
    names = {str: "text", bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}
    return names.get(origin, "a list" if origin in (list, tuple, Sequence) else "a JSON object")
