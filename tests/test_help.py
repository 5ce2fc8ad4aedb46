"""Help that can be read like a manual page."""

from __future__ import annotations

import argparse
import re

import pytest

from pynca import cli


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


@pytest.mark.parametrize("name", ["", *commands()])
@pytest.mark.parametrize("columns", [60, 100, 250])
def test_help_fits_a_page(name: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = (commands()[name] if name else cli._parser()).format_help()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    wrapped = [line for line in lines if not line.startswith(" ")]  # what is indented is a table or an example
    assert max(map(len, wrapped)) <= columns


@pytest.mark.parametrize("name", ["", *commands()])
def test_help_has_the_parts_of_a_manual_page(name: str) -> None:
    parser = commands()[name] if name else cli._parser()
    assert parser.description
    text = parser.format_help()
    assert "%%" not in text
    assert re.search(r"\nexamples:\n  pynca ", text)
    assert re.search(r"\nexit codes:\n  0 ", text)
    for action in parser._actions:
        if action.dest == "threads":
            assert "\nenvironment:\n" in text
            assert "PYNCA_NUM_THREADS" in (action.help or "")


@pytest.mark.parametrize("name", commands())
def test_every_option_has_help(name: str) -> None:
    for action in commands()[name]._actions:
        assert action.help, action
        assert not action.help.endswith("."), action.help


@pytest.mark.parametrize("name", commands())
def test_examples_can_be_parsed(name: str) -> None:
    """Every example of a command is one that its parser takes."""
    examples = re.findall(r"^  (pynca .*?)(?:   .*| > .*)?$", commands()[name].format_help(), re.MULTILINE)
    assert examples
    for example in examples:
        parsed = cli._parser().parse_args(example.split()[1:])
        assert callable(parsed.run)
