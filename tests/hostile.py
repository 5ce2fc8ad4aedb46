"""JSON that no reader expects, and what may come of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

HOSTILE: list[Any] = [
    *(10**19, -(10**19), 10**400, -1, 0, 1e308, -1e308, 5e-324, float("inf"), float("-inf"), float("nan")),
    *(
        True,
        None,
        "",
        "\0",
        "\ud800",
        "\x1b[2J",
        "\u202e",
        "x" * 100_000,
        "../../x",
        "/dev/zero",
        [],
        {},
        [[]],
        {"": {}},
    ),
    json.loads("[" * 500 + "]" * 500),
]
JSON: st.SearchStrategy[Any] = st.sampled_from(HOSTILE) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def replaced(value: Any, place: int, by: Any) -> Any:
    """JSON with the value at one of its places, counted as they are written, replaced or removed."""
    places: list[tuple[Any, Any]] = []

    def collect(inner: Any) -> None:
        for key in list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ():
            places.append((inner, key))
            if len(places) < 500:
                collect(inner[key])

    copied = json.loads(json.dumps(value))
    collect(copied)
    if not places:
        return by
    inner, key = places[place % len(places)]
    if place % 7 == 0:
        del inner[key]
    else:
        inner[key] = by
    return copied


def refusal(action: Callable[[], object]) -> str | None:
    """What an action is refused with, if it is; any other exception than a refusal is a fault."""
    try:
        action()
    except (ValueError, OSError) as error:
        return str(error)
    return None


def is_sentence(text: str) -> bool:
    """Tell whether a refusal is one line that can be read."""
    return 0 < len(text) < 600 and "\n" not in text
