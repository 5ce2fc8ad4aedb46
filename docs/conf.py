"""The site: `sphinx-build -W -b html docs build/site`, from what is installed. It loads nothing from elsewhere."""

import argparse
import os
import re
from pathlib import Path

import pynca
from pynca import cli

project = "pynca"
author = copyright = "The pynca authors"
release = version = pynca.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "py:obj"  # what docstrings name in `single backticks`
add_module_names = False
autodoc_typehints = "none"  # the docstrings say more: shapes, units, defaults
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_use_ivar = True
myst_heading_anchors = 3
html_theme = "furo"
html_title = "pynca"
html_copy_source = html_show_sphinx = html_show_copyright = False

DOCS = Path(__file__).parent
# Pages that are files elsewhere in the clone, where a forge shows them: the whole text takes the place of this comment.
BORROWED = re.compile(r"^<!-- all of (\S+) -->$", re.M)
_LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")


def setup(app):
    """Borrow texts when a page is read."""
    app.connect("source-read", borrow)


def borrow(app, docname, source):
    """Put a file in place of the comment that names it, with links that hold here."""

    def text_of(comment):
        path = (DOCS / comment[1]).resolve()
        app.env.note_dependency(str(path))
        return _with_links(path.read_text(encoding="utf-8"), path.parent)

    text = BORROWED.sub(text_of, source[0]).replace("<!-- help of every command -->", _help())
    source[0] = _with_links(text, DOCS)


def _help():
    """What every command says of itself."""
    os.environ["COLUMNS"] = "88"
    actions = cli._parser()._actions
    commands = next(a for a in actions if isinstance(a, argparse._SubParsersAction)).choices
    return "\n".join(f"## {name}\n\n```text\n{parser.format_help()}```\n" for name, parser in commands.items())


def _with_links(text, folder):
    """Rewrite links that lead out of docs/, or that come from elsewhere, to the pages of the site."""

    def link(found):
        target = (folder / found[2]).resolve()
        return found[1] + os.path.relpath(_PAGES.get(target, target), DOCS) + found[3]

    return _LINK.sub(link, text)


_PAGES = {
    (DOCS / found[1]).resolve(): page
    for page in DOCS.glob("**/*.md")
    for found in BORROWED.finditer(page.read_text(encoding="utf-8"))
}
