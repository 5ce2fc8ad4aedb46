"""Every command and every line of Python that the documentation shows is run, and prints what is shown.

A page is run from top to bottom, as a reader would, in a folder like a clone's: ``../shared``, ``.venv`` and
``benchmarks`` are where the page expects them. Comments in a page say what a reader does not see:

``<!-- prepare: COMMANDS -->``   makes what the page takes for granted, such as ``scan.nii.gz``
``<!-- needs: MODULES -->``      skips the page where one of them is not installed
``<!-- not run: REASON -->``     in front of a block that cannot be run here

A block ``text`` is the output of the block before it; times in it are not compared, and ``...`` stands for anything.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from support import SHARED

CLONE = Path(__file__).resolve().parents[1]
PAGES = [
    *(CLONE / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((CLONE / "pynca" / "zoo").glob("*.md")),
    *sorted((CLONE / "docs").glob("**/*.md")),
]
# Each is a promise that nobody checks here, so they are few, and a new one is argued for.
REASONS = {
    "as in the README, where it is run": 1,
    "installs": 4,
    "measures for minutes": 11,
    "test_site does": 1,
    "trains for half an hour": 3,
    "trains for more than an hour": 2,
}
_PIECE = re.compile(
    r"^(?P<fence>```+)(?P<kind>.*)\n(?P<code>(?s:.*?))^(?P=fence)$|^<!-- (?P<comment>(?s:.*?)) -->$", re.M
)
_TIME = re.compile(r"\d+(\.\d+)? s\b")


@dataclass
class Block:
    """A piece of a page that is run."""

    line: int
    kind: str
    code: str
    not_run: str = ""
    shown: str | None = None


@dataclass
class Page:
    """What of a page is run, and the modules without which it cannot be."""

    path: Path
    blocks: list[Block]
    modules: list[str]

    @property
    def missing(self) -> str:
        """Why the page cannot be run here, or nothing."""
        if any("../shared" in block.code for block in self.blocks) and not SHARED.is_dir():
            return f"{SHARED} with the real files is not there"
        absent = [name for name in self.modules if not installed(name)]
        return f"not installed: {', '.join(absent)}" if absent else ""


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def read_page(path: Path) -> Page:
    page, not_run = Page(path, [], []), ""
    text = path.read_text(encoding="utf-8")
    for piece in _PIECE.finditer(text):
        line = text.count("\n", 0, piece.start()) + 1
        word, _, rest = (piece["comment"] or "").partition(": ")
        if word == "prepare":
            page.blocks.append(Block(line, "sh", rest))
        elif word == "needs":
            page.modules += rest.split()
        elif word == "not run":
            not_run = rest
        elif piece["kind"] in ("sh", "python"):
            page.blocks.append(Block(line, piece["kind"], piece["code"], not_run))
            not_run = ""
        elif piece["kind"] == "text":
            assert page.blocks, f"{path}:{line} is the output of nothing"
            assert page.blocks[-1].shown is None, f"{path}:{line} is a second output of one block"
            page.blocks[-1].shown = piece["code"]
        elif piece["kind"] and not piece["kind"].startswith("{"):  # braces: a directive of the site's generator
            raise AssertionError(f"{path}:{line} is a block of {piece['kind']!r}; sh and python are run, text compared")
    assert not not_run, f"{path}: `not run: {not_run}` stands in front of no block"
    return page


def run_shell(code: str, folder: Path) -> str:
    scripts = os.pathsep.join([sysconfig.get_path("scripts"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": scripts}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}"
    return done.stdout


def run_python(block: Block, path: Path, names: dict[str, object]) -> str:
    code = compile("\n" * block.line + block.code, str(path), "exec")  # errors name the page's own lines
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code, names)
    return output.getvalue()


def as_shown(output: str, shown: str) -> bool:
    output, shown = ("\n".join(line.rstrip() for line in _TIME.sub("T s", t).splitlines()) for t in (output, shown))
    return re.fullmatch(".*?".join(re.escape(part) for part in shown.split("...")), output, re.DOTALL) is not None


@pytest.mark.parametrize("path", PAGES, ids=[str(p.relative_to(CLONE)) for p in PAGES])
def test_page(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = read_page(path)
    if page.missing:
        pytest.skip(page.missing)
    folder = tmp_path / "pynca"
    folder.mkdir()
    for link, target in {"../shared": SHARED, ".venv": Path(sys.prefix), "benchmarks": CLONE / "benchmarks"}.items():
        (folder / link).symlink_to(target)
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for block in page.blocks:
        if block.not_run:
            continue
        place = f"{path}:{block.line}"
        try:
            output = run_shell(block.code, folder) if block.kind == "sh" else run_python(block, path, names)
        except Exception as error:
            raise AssertionError(f"{place} failed: {error}\n{block.code}") from error
        if block.shown is not None:
            assert as_shown(output, block.shown), f"{place} printed\n{output}\nbut the page shows\n{block.shown}"


def test_what_is_not_run() -> None:
    found = [block.not_run for path in PAGES for block in read_page(path).blocks if block.not_run]
    assert {reason: found.count(reason) for reason in sorted(set(found))} == REASONS


# --- links -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=[str(p.relative_to(CLONE)) for p in PAGES])
def test_links_hold_on_a_forge(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if "://" not in file:
            page = (path.parent / file) if file else path
            assert page.exists(), f"{path} links to {target}, which is not there"
            assert not anchor or anchor in anchors(page), f"{path} links to {target}, which has no such heading"


def anchors(page: Path) -> list[str]:
    """What a forge makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", _PIECE.sub("", page.read_text(encoding="utf-8")), re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


# --- the site ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("sphinx", "furo", "myst_parser"):
        if not installed(name):
            pytest.skip(f"{name} is not installed: `pip install '.[docs]'`")
    folder = tmp_path_factory.mktemp("site")
    options = ["-q", "-W", "--keep-going", "-b", "html"]
    command = [sys.executable, "-m", "sphinx", *options, str(CLONE / "docs"), str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


class Targets(HTMLParser):
    """What a page of the site loads, where its links lead, and what can be linked to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name == "src" or (name == "href" and tag == "link"):
                self.loads.append(value or "")
            elif name == "href" and tag == "a":
                self.links.append(value or "")


def test_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.glob("**/*.html"):
        for source in Targets(page).loads:
            file = page.parent / re.split("[?#]", source)[0]
            assert file.exists(), f"{page.name} loads {source}"
    for style in site.glob("**/*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


def test_site_has_no_dead_links(site: Path) -> None:
    pages = {page: Targets(page) for page in site.glob("**/*.html")}
    for page, targets in pages.items():
        for link in targets.links:
            file, _, anchor = link.partition("#")
            if "://" in link:
                continue
            target = (page.parent / file).resolve() if file else page
            assert target.is_file(), f"{page.name} links to {link}"
            if anchor and target in pages and target.name not in ("genindex.html", "search.html"):
                assert unquote(anchor) in pages[target].ids, f"{page.name} links to {link}"
