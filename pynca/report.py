"""A page that shows a folder of results: one HTML file that needs no other and asks nobody for anything."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from .curve import svg
from .errors import printable, sentence
from .files import atomic_path, check_writable
from .jsontext import content
from .manifest import FILE, read_manifest
from .preview import draw_preview, png
from .seal import TEXT
from .statistics import Cycle, LabelStatistics, cycles
from .volumes import read_label, read_volume

PAGE = "report.html"  # what it is called in its folder
_LARGEST_PREVIEW = 8 * 2**20  # bytes

# What a case can be, in the order in which they need attention, and what the page calls it
_STATES = {"failed": "Failed", "review": "To review", "skipped": "Skipped", "done": "Done", "ok": "OK"}
_LINKS = {
    "mask": "Mask",
    "probability": "Probability",
    "uncertainty": "Uncertainty",
    "preview": "Preview",
}


def write_report(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    inputs: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a page about a folder that `pynca segment` filled: every case with its picture, volume and quality.

    The page is one file: pictures are in it, links to results are relative to it, and it loads nothing from elsewhere.
    The same results give the same bytes.

    Parameters
    ----------
    folder : str or path-like
        Holds ``manifest.json`` and what that names.
    path : str or path-like, optional
        The page to write. Default: ``report.html`` in the folder.
    inputs : str or path-like, optional
        The folder of the inputs. With it, the page links to them, and cases without a preview are drawn.
    overwrite : bool
        Replace a file that pynca did not write, or that was changed since. Default False.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ValueError
        The manifest is damaged or of another kind, or the page would replace what it shows.
    FileExistsError
        There is a file that pynca did not write, and ``overwrite`` is not given.
    OSError
        There is no manifest, or the page cannot be written.
    """
    folder = Path(folder)
    page = folder / PAGE if path is None else Path(path)
    manifest = _read(folder / FILE)
    place = _Place(folder, page.parent, None if inputs is None else Path(inputs), manifest["options"].get("volume"))
    shown = [folder / FILE, *place.files(manifest)]
    check_writable(page, overwrite=overwrite, inputs=shown)
    text = _page(manifest, place)
    with atomic_path(page, overwrite=overwrite, inputs=shown) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")
    return page


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; `pynca segment` writes it where it segments a folder")
    manifest = read_manifest(path)
    return {**manifest, "cases": [asdict(entry) for entry in manifest["cases"]]}


class _Place:
    """Where results, inputs and the page are, and how one is reached from the other."""

    def __init__(self, folder: Path, page: Path, inputs: Path | None, volume: int | Literal["all"] | None) -> None:
        self.folder, self.page, self.inputs = folder, page, inputs
        self.volume = volume  # which one of files with four axes

    def result(self, case: Mapping[str, Any], kind: str) -> Path | None:
        """Return a result of a case, if there is one.

        It must lie in the folder of results, or be a preview that has the SHA-256 which the manifest says: whoever
        wrote the manifest knew it then, and did not name a file of this computer to have it shown.
        """
        name = case["outputs"].get(kind)
        found = None if name is None else _within(self.folder, name)
        if found is None and name is not None and kind == "preview" and case["preview_sha256"] is not None:
            with contextlib.suppress(OSError, ValueError):
                elsewhere = self.folder / str(name)
                if hashlib.sha256(content(elsewhere, _LARGEST_PREVIEW)).hexdigest() == case["preview_sha256"]:
                    return elsewhere
        return found

    def input(self, case: Mapping[str, Any]) -> Path | None:
        return None if self.inputs is None else _within(self.inputs, case["input"])

    def files(self, manifest: Mapping[str, Any]) -> Iterator[Path]:
        """Yield what the manifest names: what the page shows and links to."""
        for case in manifest["cases"]:
            named = (*(self.result(case, kind) for kind in case["outputs"]), self.input(case))
            yield from (path for path in named if path is not None)

    def link(self, path: Path) -> str | None:
        """Return the address of a file as seen from the page; it never names a host or a scheme."""
        try:
            relative = os.path.relpath(path, self.page)
        except ValueError:  # another drive
            return None
        return quote(os.fsencode(Path(relative).as_posix()))


def _within(folder: Path, name: str) -> Path | None:
    """Return the file or series of a name in a folder, links followed: a manifest can name what is not its to show."""
    try:
        path, top = Path(os.path.realpath(folder / name)), Path(os.path.realpath(folder))
        inside = top in (path, *path.parents) and not os.path.isabs(name)
        return folder / name if inside and (path.is_file() or path.is_dir()) else None
    except (OSError, ValueError):  # a name that the system cannot have
        return None


# --- the page -----------------------------------------------------------------------------------------


def _page(manifest: Mapping[str, Any], place: _Place) -> str:
    cases = sorted(manifest["cases"], key=lambda case: (list(_STATES).index(_state(case)), case["input"]))
    style, script = (
        files(__package__).joinpath("web", name).read_text("utf-8") for name in ("report.css", "report.js")
    )
    model = _text(manifest["model"]["name"])
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="{TEXT}">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{model}: {len(cases)} cases</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="kicker">Segmentation report</p>
<h1>{model}</h1>
<p class="facts">{_facts(manifest)}</p>
</header>
<main>
{_summary(manifest, cases)}
<p id="shown" role="status" hidden></p>
<div id="cases">
{"".join(_case(n, case, place) for n, case in enumerate(cases))}</div>
</main>
<footer>
{_provenance(manifest)}
<p>NQM says how far the runs of the automaton disagree: 0 = not at all, larger is worse. The outline is the mask's.
Slices are seen from the feet, the front or the patient's left, with the patient's right, or front, on the left.</p>
<p>Made by pynca {_text(manifest["pynca"])}. Research software, not a medical device: do not base decisions about
patients on it. This page holds everything it shows and loads nothing from elsewhere.</p>
</footer>
<script>{script}</script>
</body>
</html>
"""


def _facts(manifest: Mapping[str, Any]) -> str:
    options = manifest["options"]
    facts = [f"pynca {_text(manifest['pynca'])}"]
    facts += [f"{name} {_text(options[name])}" for name in ("seed", "samples") if name in options]
    facts += [_text(str(manifest["started"]).replace("T", " ").replace("+00:00", " UTC")), _time(manifest["seconds"])]
    return " · ".join(f"<span>{fact}</span>" for fact in facts)


def _summary(manifest: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> str:
    count = {state: sum(_state(case) == state for case in cases) for state in _STATES}
    tiles = [_tile("all", "Cases", len(cases))]
    tiles += [_tile(state, name, count[state]) for state, name in _STATES.items() if count[state]]
    controls = """<div class="controls" hidden>
<label>Sort by <select id="sort"><option value="order">attention</option><option value="name">name</option>\
<option value="volume">volume</option><option value="nqm">NQM, worst first</option></select></label>
<label>Find <input id="find" type="search" placeholder="name"></label>
</div>"""
    ranges = "".join(_ranges(cases))
    if manifest.get("pending"):
        ranges += f'<p class="range">{len(manifest["pending"])} more cases are still to be done.</p>\n'
    return (
        f'<section class="summary" aria-label="Summary">\n<div class="tiles">{"".join(tiles)}</div>\n{ranges}{controls}'
        "\n</section>"
    )


def _tile(state: str, name: str, number: int) -> str:
    pressed = "true" if state == "all" else "false"
    return (
        f'<button class="tile {state}" data-state="{state}" aria-pressed="{pressed}" disabled>'
        f"<b>{number}</b> <span>{name}</span></button>"
    )


def _ranges(cases: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say how large each label is over all cases; of a film, its largest frame counts."""
    volumes: dict[str, list[float]] = {}
    for case in cases:
        for label in _standing(case):
            if label.volume_ml is not None:
                volumes.setdefault(str(label.name), []).append(float(label.volume_ml))
    for name, values in sorted(volumes.items()):
        if len(values) > 1:
            yield (
                f'<p class="range"><b>{_text(name)}</b> median {statistics.median(values):.3f} ml, '
                f"from {min(values):.3f} to {max(values):.3f} ml in {len(values)} cases</p>\n"
            )


def _provenance(manifest: Mapping[str, Any]) -> str:
    model = manifest["model"]
    rows = [("Model file", model["file"]), ("SHA-256 of the model", model["sha256"])]
    rows += [(name, value) for name, value in sorted(manifest["options"].items())]
    lines = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in rows)
    return f"<details><summary>Model and options</summary><dl>{lines}</dl></details>"


# --- a case -------------------------------------------------------------------------------------------


def _state(case: Mapping[str, Any]) -> str:
    """Return which of the page's states a case is in."""
    status, quality = case["status"], case["quality"]
    return str(status if quality is None or status == "failed" else quality)


def _case(n: int, case: Mapping[str, Any], place: _Place) -> str:
    state = _state(case)
    volume = sum(label.volume_ml or 0 for label in _standing(case))
    nqm = case["nqm"] if case["nqm"] is not None else -1
    folder, _, name = str(case["input"]).rpartition("/")
    parts = [
        f'<article class="case {state}" data-state="{state}" data-order="{n}" data-name="{_text(case["input"])}" '
        f'data-volume="{float(volume)}" data-nqm="{float(nqm)}">',
        f"<h2>{f'<small>{_text(folder)}/</small>' if folder else ''}{_text(name)}</h2>",
        f'<p class="badge">{_STATES[state]}</p>',
        _film(case, place) if state != "failed" else "",
        '<div class="said">',
        f'<p class="error">{_text(case["error"])}</p>' if case["error"] else "",
        _listed("reasons", case["reasons"]),
        _table(case),
        *(_curve(cycle) for cycle in cycles(_labels(case))),
        _listed("warnings", case["warnings"]),
        _links(case, place),
        _details(case),
        "</div>",
        "</article>\n",
    ]
    return "\n".join(part for part in parts if part)


def _listed(kind: str, sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{_text(sentence)}</li>" for sentence in sentences)
    title = "<h3>Warnings</h3>" if kind == "warnings" else ""
    return f'<div class="{kind}">{title}<ul>{items}</ul></div>' if items else ""


def _labels(case: Mapping[str, Any]) -> list[LabelStatistics]:
    return [LabelStatistics(**label) for label in case["labels"]]


def _standing(case: Mapping[str, Any]) -> list[LabelStatistics]:
    """Return the labels of a case; those of a film as in their largest frames."""
    labels = _labels(case)
    return [cycle.largest for cycle in cycles(labels)] or labels


def _table(case: Mapping[str, Any]) -> str:
    labels = [label for label in _labels(case) if label.frame is None]
    return _rows([(label.name, label) for label in labels], case["nqm"]) if labels else ""


def _curve(cycle: Cycle) -> str:
    """Return how a label changes over the frames of a film: the curve, what matters of it, and every frame."""
    high, low = ("End-diastole", "End-systole") if cycle.ventricle else ("Largest", "Smallest")
    ends = ((high, cycle.largest), (low, cycle.smallest))
    table = _rows([(f"{name}, frame {label.frame}", label) for name, label in ends])
    fraction = cycle.ejection_fraction
    told = f"No ejection fraction: {_text(cycle.missing)}" if cycle.missing else ""
    told = told if fraction is None else f"Ejection fraction <b>{100 * fraction:.1f} %</b>"
    beside = f'<p class="fraction">{told}</p>' if told else ""
    frames = _rows([(f"Frame {label.frame}", label) for label in cycle.frames])
    return (
        f'<figure class="curve"><figcaption>{_text(cycle.name)} over {len(cycle.frames)} frames</figcaption>'
        f"{svg(cycle)}</figure>\n{table}\n{beside}<details><summary>All frames</summary>{frames}</details>"
    )


def _rows(labels: Sequence[tuple[str, LabelStatistics]], nqm: float | None = None) -> str:
    rows = []
    for name, label in labels:
        size = "nothing found" if label.voxels == 0 else _number(label.volume_ml, 3, " ml")
        told = _number(label.nqm if label.nqm is not None else nqm, 4)
        values = "".join(f"<td>{cell}</td>" for cell in (size, f"{label.voxels:d}", told))
        rows.append(f'<tr><th scope="row">{_text(name)}</th>{values}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Volume", "Voxels", "NQM"))
    return f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _links(case: Mapping[str, Any], place: _Place) -> str:
    targets = [(title, place.result(case, kind)) for kind, title in _LINKS.items()]
    targets.append(("Input", place.input(case)))
    links = [(title, place.link(path)) for title, path in targets if path is not None]
    items = "".join(f'<li><a href="{escape(link)}">{title}</a></li>' for title, link in links if link is not None)
    return f'<ul class="links" aria-label="Files">{items}</ul>' if items else ""


def _details(case: Mapping[str, Any]) -> str:
    rows = [("Time", _time(case["seconds"])), ("SHA-256 of the input", case["sha256"] or "not read")]
    for label in _labels(case):
        of = label.name if label.frame is None else f"{label.name} in frame {label.frame}"
        if label.mean_probability is not None:
            rows.append((f"Mean probability of {of}", _number(label.mean_probability, 3)))
        if label.bounding_box is not None:
            extent = ", ".join(f"{first} to {last}" for first, last in label.bounding_box)
            rows.append((f"Extent of {of} in voxels", extent))
    lines = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in rows)
    return f"<details><summary>Details</summary><dl>{lines}</dl></details>"


def _film(case: Mapping[str, Any], place: _Place) -> str:
    """Return the picture of a case, or why there is none."""
    name = _text(case["input"])
    try:
        source = base64.b64encode(_picture(case, place)).decode()
    except (OSError, ValueError, TypeError, ImportError, MemoryError) as error:
        return f'<p class="film none">No picture: {_text(sentence(error))}</p>'
    found = " and ".join(_text(label.name) for label in _labels(case) if label.voxels and not label.frame)
    of = f"the first frame of {name}" if cycles(_labels(case)) else name
    alt = f"Slices of {of} with the outline of {found}" if found else f"Slices of {of}"
    return (
        f'<div class="film" tabindex="0" role="group" aria-label="Picture of {name}">'
        f'<img src="data:image/png;base64,{source}" alt="{alt}"></div>'
    )


def _picture(case: Mapping[str, Any], place: _Place) -> bytes:
    preview = place.result(case, "preview")
    if preview is not None:
        try:
            picture = content(preview, _LARGEST_PREVIEW)
        except ValueError:
            picture = b""
        if picture[:8] != b"\x89PNG\r\n\x1a\n":
            raise ValueError(f"{preview.name} is not a PNG of less than 8 MB")
        return picture
    mask, image = place.result(case, "mask"), place.input(case)
    if mask is None:
        raise ValueError("there is neither a preview nor a mask")
    if image is None:
        lacking = (
            "without the folder of the inputs" if place.inputs is None else f"without {case['input']} in {place.inputs}"
        )
        raise ValueError(f"there is no preview in the folder of results, and {lacking} none can be drawn")
    volume, drawn = read_volume(image, volume=place.volume), read_label(mask, volume=place.volume).data
    if drawn.shape != volume.data.shape:
        raise ValueError(f"the mask has shape {drawn.shape}, the input {volume.data.shape}")
    return png(draw_preview(volume, drawn))


# --- words --------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    """Return text for HTML, without what would command the reader's program, such as a change of direction."""
    return escape(" ".join(printable(str(value)).split()))


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}{unit}"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _hash(source: str) -> str:
    """Return what a page's policy calls a script or style that may be used."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
