"""`pynca completion`: the words that a shell can fill in."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .common import DONE, EXIT_CODES

if TYPE_CHECKING:
    from .common import Commands

SHELLS = ("bash", "zsh", "fish")


_EPILOG = f"""
examples:
  pynca completion bash > ~/.local/share/bash-completion/completions/pynca
  pynca completion zsh > ~/.zfunc/_pynca          where fpath holds ~/.zfunc
  pynca completion fish > ~/.config/fish/completions/pynca.fish

{EXIT_CODES}
"""


def add(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "completion",
        help="print what lets a shell complete commands, options, models and files",
        description="Print a script that lets a shell complete commands, options, models and files.",
        epilog=_EPILOG,
    )
    command.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from .. import zoo
    from ..formats.base import optional
    from ..volumes import SUFFIXES
    from . import _parser

    shtab = optional("shtab", "completion", "completion")
    pynca = _parser()
    for action in _actions(pynca):
        name = _completer(action)
        if name is not None:
            action.complete = {"bash": name, "zsh": name, "fish": f"({name})"}  # type: ignore[attr-defined]
    words = {"models": " ".join(zoo.names()), "images": " ".join(f"*{suffix}" for suffix in SUFFIXES)}
    functions = {shell: _fill(text, words) for shell, text in _FUNCTIONS.items()}
    print(shtab.complete(pynca, arguments.shell, preamble=functions))
    return DONE


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield what a parser and the parsers of its commands take."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)


def _completer(action: argparse.Action) -> str | None:
    """Return the shell function that completes an argument, where it is a model, a folder or a file."""
    if action.dest == "model":
        return "_pynca_models"
    if action.metavar == "IN":
        return "_pynca_images"
    if action.metavar == "DIR":
        return "_pynca_folders"
    return "_pynca_files" if action.type is Path else None


def _fill(text: str, words: dict[str, str]) -> str:
    for name, value in words.items():
        text = text.replace(f"@{name}@", value)
    return text


_FUNCTIONS = {
    "bash": """
_pynca_files() { compgen -f -- "$1"; }
_pynca_folders() { compgen -d -- "$1"; }
_pynca_models() {
  compgen -W "@models@" -- "$1"
  compgen -f -X '!*.safetensors' -- "$1"
  compgen -d -- "$1"
}
_pynca_images() {
  local pattern
  set -f
  for pattern in @images@; do compgen -f -X "!$pattern" -- "$1"; done
  set +f
  compgen -d -- "$1"
}
""",
    "zsh": """
_pynca_files() { _files }
_pynca_folders() { _files -/ }
_pynca_models() { compadd @models@; _files -g '*.safetensors' }
_pynca_images() { local patterns='@images@'; _files -g "(${patterns// /|})" }
""",
    "fish": """
function _pynca_files; __fish_complete_path (commandline -ct); end
function _pynca_folders; __fish_complete_directories (commandline -ct); end
function _pynca_models
    string split " " "@models@"
    __fish_complete_suffix .safetensors
end
function _pynca_images
    for pattern in (string split " " "@images@"); __fish_complete_suffix (string sub -s 2 -- $pattern); end
end
""",
}
