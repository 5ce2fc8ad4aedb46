"""The page about a folder: complete, safe with any file name, and alone in the world."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import browser
import pynca
from hostile import JSON, is_sentence, refusal, replaced
from pynca import cli
from pynca.manifest import Manifest
from pynca.preview import draw_preview, png, write_preview
from pynca.report import write_report
from pynca.volumes import read_volume
from support import random_model

MODEL = random_model()
HOSTILE = (
    "<script>alert(1)<!--.nii.gz",
    'a" onmouseover="alert(1).nii.gz',
    "javascript:alert(1).nii.gz",
    "ä &amp; b #?.nii",
)


def case(name: str, **other: Any) -> dict[str, Any]:
    empty = {"sha256": None, "status": "done", "error": None, "warnings": [], "outputs": {}, "quality": None}
    return {"input": name, **empty, "reasons": [], "nqm": None, "labels": [], "seconds": 0.1, **other}


def label(voxels: int, volume_ml: float | None, name: str = "blob") -> dict[str, Any]:
    box = [[1, 2], [3, 4], [0, 4]] if voxels else None
    size = {"value": 1, "name": name, "voxels": voxels, "volume_ml": volume_ml}
    return {**size, "bounding_box": box, "mean_probability": 0.75 if voxels else None, "nqm": None}


def write_manifest(folder: Path, cases: list[dict[str, Any]], **other: Any) -> None:
    manifest = {
        "schema": 1,
        "pynca": "0.1.0",
        "model": {"name": "blobs", "file": "blobs.safetensors", "sha256": "0123456789abcdef" * 4},
        "options": {"seed": 7, "samples": 3},
        "started": "2026-03-04T05:06:07+00:00",
        "seconds": 83.4,
        "cases": cases,
        "summary": {},
        **other,
    }
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of ok, review, done, skipped and failed cases; the first two with a preview, all but one with a mask."""
    results = tmp_path / "results"
    (results / "previews").mkdir(parents=True)
    (tmp_path / "inputs" / "sub").mkdir(parents=True)
    cases = []
    names = ("a.nii.gz", "sub/b.nii.gz", "c.nii.gz", "d.nii.gz", *HOSTILE)
    for n, name in enumerate(names):
        data = np.random.default_rng(n).gamma(2.0, 100.0, (9, 11, 5)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(data, np.diag([-1.0, 1.5, 2.0, 1.0])), tmp_path / "inputs" / name)
        found = pynca.predict(tmp_path / "inputs" / name, MODEL, threads=1)
        outputs = {"mask": f"{n} mask.nii.gz"}
        found.save(results / outputs["mask"])
        if n < 2:
            outputs["preview"] = f"previews/{n}.png"
            write_preview(results / outputs["preview"], found.volume, found)
        voxels = int(np.count_nonzero(found.mask))
        cases.append(case(name, outputs=outputs, labels=[label(voxels, voxels * 0.003)], nqm=0.125))
    cases[0]["quality"] = "ok"
    cases[1] |= {"quality": "review", "reasons": ["NQM is 0.125, above 0.1"], "warnings": ["it is <b>odd</b>"]}
    cases[2] |= {"status": "skipped", "labels": [], "nqm": None}
    cases.append(case("e.nii.gz", status="failed", error="e.nii.gz is damaged & cut short"))
    cases.append(case("f.nii.gz", labels=[label(0, 0.0)], outputs={"mask": "gone.nii.gz"}))
    write_manifest(results, sorted(cases, key=lambda c: c["input"]))
    return results


class Parsed(HTMLParser):
    """Tags, addresses, and what the page says."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.cards: list[dict[str, Any]] = []
        self._open: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "article":
            self.cards.append({**dict(attrs), "text": "", "links": {}, "images": []})
        if self.cards and tag == "a":
            self.cards[-1]["links"][len(self.cards[-1]["links"])] = dict(attrs)["href"]
        if self.cards and tag == "img":
            self.cards[-1]["images"].append(dict(attrs))
        if tag not in ("meta", "link", "img", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.text.append(data)
            if self.cards:
                self.cards[-1]["text"] += data + " "

    def addresses(self) -> list[str]:
        kinds = ("src", "href", "srcset", "action", "data", "poster", "formaction", "xlink:href")
        return [value or "" for _, attrs in self.tags for kind, value in attrs.items() if kind in kinds]


def test_it_shows_every_case_and_those_that_need_attention_first(folder: Path) -> None:
    page = Parsed(write_report(folder))
    states = [card["data-state"] for card in page.cards]
    assert states == ["failed", "review", "skipped", *["done"] * 6, "ok"][: len(states)]
    assert [c["data-name"] for c in page.cards[:3]] == ["e.nii.gz", "sub/b.nii.gz", "c.nii.gz"]
    failed, review, skipped = page.cards[:3]
    assert "e.nii.gz is damaged & cut short" in failed["text"]
    assert failed["images"] == []
    for said in ("To review", "NQM is 0.125, above 0.1", "it is <b>odd</b>", "0.1250", " ml"):
        assert said in review["text"]
    assert "there is no preview" in skipped["text"]
    empty = next(card for card in page.cards if card["data-name"] == "f.nii.gz")
    assert "nothing found" in empty["text"]
    assert "neither a preview nor a mask" in empty["text"]
    everything = " ".join(page.text)
    for fact in (
        "blobs",
        "pynca 0.1.0",
        "seed 7",
        "samples 3",
        "2026-03-04 05:06:07 UTC",
        "1 min 23 s",
        "0123456789abcdef",
    ):
        assert fact in everything
    tiles = [attrs["data-state"] for tag, attrs in page.tags if tag == "button"]
    assert tiles == ["all", "failed", "review", "skipped", "done", "ok"]


def test_pictures_are_the_previews_and_else_are_drawn_from_mask_and_input(folder: Path) -> None:
    def pictures(page: Parsed) -> dict[str, bytes]:
        shown = {card["data-name"]: card["images"] for card in page.cards}
        for images in shown.values():
            assert all(image["alt"] for image in images)
        prefix = "data:image/png;base64,"
        return {n: base64.b64decode(i[0]["src"].removeprefix(prefix)) for n, i in shown.items() if i}

    without = pictures(Parsed(write_report(folder)))
    assert set(without) == {"a.nii.gz", "sub/b.nii.gz"}
    assert without["sub/b.nii.gz"] == (folder / "previews" / "1.png").read_bytes()
    inputs = folder.parent / "inputs"
    drawn = pictures(Parsed(write_report(folder, inputs=inputs)))
    assert set(drawn) == {"a.nii.gz", "sub/b.nii.gz", "c.nii.gz", "d.nii.gz", *HOSTILE}
    mask = read_volume(folder / "3 mask.nii.gz").data
    assert drawn["d.nii.gz"] == png(draw_preview(read_volume(inputs / "d.nii.gz"), mask))
    (folder / "previews" / "0.png").write_bytes(b"GIF89a")
    (folder / "3 mask.nii.gz").write_bytes(b"no mask")
    told = {card["data-name"]: card["text"] for card in Parsed(write_report(folder, inputs=inputs)).cards}
    assert "0.png is not a PNG" in told["a.nii.gz"]
    assert "3 mask.nii.gz is not a NIfTI file" in told["d.nii.gz"]


def test_links_are_relative_to_the_page_and_lead_to_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for page in (None, tmp_path / "elsewhere" / "page.html"):
        written = write_report(folder, page, inputs=tmp_path / "inputs")
        links = [link for card in Parsed(written).cards for link in card["links"].values()]
        assert len(links) == 8 * 2 + 2  # mask and input of eight cases, two previews
        for link in links:
            assert (written.parent / unquote(link)).is_file()


def test_nothing_points_outside_and_names_are_text(folder: Path) -> None:
    path = write_report(folder, inputs=folder.parent / "inputs")
    page = Parsed(path)
    for address in page.addresses():
        assert address.startswith("data:") or re.fullmatch(r"[\w./%~-]+", address), address
        assert not address.startswith("//")
    content = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|WebSocket", content)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on") or name == "style"]
    assert set(HOSTILE) <= {card["data-name"] for card in page.cards}
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert (policy or "").startswith("default-src 'none'; img-src data:; ")


def test_what_a_manifest_says_cannot_leave_the_page(tmp_path: Path) -> None:
    said = {
        "mask": "//example.org/x",
        "probability": "https://example.org/x",
        "preview": "\0",
        "uncertainty": "../../x",
    }
    named = case("\u202egnp.nii\ud800", outputs=said, labels=[label(1, None, "<img src=x>")])
    write_manifest(
        tmp_path, [named], options={"seed": "<script>"}, model={"name": "</title>", "file": "'", "sha256": '"'}
    )
    page = Parsed(write_report(tmp_path))
    assert page.addresses() == ["data:,"]
    assert page.cards[0]["data-name"] == "\ufffdgnp.nii\ufffd"
    assert "<img src=x>" in page.cards[0]["text"]


def test_the_same_results_give_the_same_bytes(folder: Path) -> None:
    page = write_report(folder)
    before = page.read_bytes()
    assert page == folder / "report.html"
    assert write_report(folder).read_bytes() == before
    assert sorted(p.name for p in folder.glob(".*")) == []


def test_an_empty_folder_has_a_page(tmp_path: Path) -> None:
    write_manifest(tmp_path, [])
    assert Parsed(write_report(tmp_path)).cards == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "it is not JSON at character 1"),
        ("[" * 100_000, "it is nested too deeply"),
        ("[]", "it must be a JSON object"),
        ('{"schema": 2}', "it has schema 2; this pynca reads 1"),
        ('{"schema": 1, "options": {}}', "it misses 'model'"),
        ({"cases": [1]}, "case 0 is 1; it must be a JSON object"),
        ({"cases": None}, "cases is None; it must be a list"),
        (
            {"cases": [case("a", labels=[label(10, 0.1) | {"voxels": "9"}])]},
            "case 0.labels[0].voxels is '9'; it must be",
        ),
        ({"cases": [case("a", seconds="1")]}, "case 0.seconds is '1'; it must be a number"),
        ({"cases": [case("a", status="lost")]}, "case 0.status is 'lost'; it must be 'done' or 'failed' or 'skipped'"),
        ({"cases": [case("a", quality="good")]}, "case 0: quality is 'good'; it must be 'ok', 'review' or null"),
        ({"cases": [case("a"), case("a")]}, "it has the case 'a' twice"),
        ({"options": {"volume": "../x"}}, "options: volume is '../x'; it must be a whole number"),
        ({"options": {"volume": -1}}, "options: volume is -1"),
        ({"started": "yesterday"}, "started is 'yesterday'; it must be a date"),
        ({"seconds": -1}, "seconds is -1.0"),
        ({"model": {"name": "a"}}, "model misses 'file'"),
        ({"pynca": "1" * 100_000, "started": "x" * 100_000}, "started is 'xxx"),
    ],
)
def test_a_wrong_manifest_is_one_sentence(tmp_path: Path, capsys: Any, content: Any, said: str) -> None:
    if isinstance(content, str):
        (tmp_path / "manifest.json").write_text(content)
    else:
        write_manifest(tmp_path, **{"cases": [], **content})
    assert cli.main(["report", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert f"{tmp_path / 'manifest.json'} is damaged or not pynca's: " in told
    assert len(told.splitlines()) == 1
    assert len(told) < 600
    assert not (tmp_path / "report.html").exists()


def test_pictures_that_are_not_of_the_results_are_not_shown(folder: Path, tmp_path: Path) -> None:
    """A manifest comes with the folder; it must not make the page show, or wait for, what else this computer holds."""
    secret = tmp_path / "secret.png"
    secret.write_bytes((folder / "previews" / "0.png").read_bytes()[:-1] + b"!")
    (folder / "linked.png").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.png")
    with open(folder / "large.png", "wb") as file:
        file.truncate(2**40)
    names = (str(secret), "../secret.png", "linked.png", "up/secret.png", "pipe.png", "large.png", ".", "x" * 5000)
    cases = [case(f"{n}.nii", outputs={"mask": name, "preview": name}) for n, name in enumerate(names)]
    cases += [case("../results/0 mask.nii.gz"), case(str(secret)), case("up/secret.png", outputs={"mask": "../s"})]
    write_manifest(folder, cases)
    page = write_report(folder, inputs=tmp_path / "inputs")
    parsed = Parsed(page)
    assert not any(card["images"] for card in parsed.cards)
    assert not any("secret" in link or "linked" in link for card in parsed.cards for link in card["links"].values())
    # one that lies elsewhere is shown where the manifest knows its content
    known = hashlib.sha256(secret.read_bytes()).hexdigest()
    write_manifest(folder, [case("a.nii", outputs={"preview": "../secret.png"}, preview_sha256=known)])
    assert len(Parsed(write_report(folder)).cards[0]["images"]) == 1


@given(changes=st.lists(st.tuples(st.integers(0, 400), JSON), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_whatever_a_manifest_says_it_is_read_or_refused_in_a_sentence(changes: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifest(folder, [case("a.nii", labels=[label(3, 0.1)], outputs={"mask": "a.nii"}), case("b", nqm=0.1)])
        content = json.loads((folder / "manifest.json").read_text())
        for place, value in changes:
            content = replaced(content, place, value)
        (folder / "manifest.json").write_text(json.dumps(content))
        with contextlib.suppress(ValueError, OSError):
            Manifest.read(folder)
        said = refusal(lambda: write_report(folder, inputs=folder))
        assert said is None or is_sentence(said)


def test_the_command(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"{folder / 'report.html'}: 0.")
    page = tmp_path / "x.html"
    assert cli.main(["report", str(folder), "-o", str(page), "--inputs", str(tmp_path / "inputs")]) == 0
    assert page.stat().st_size > (folder / "report.html").stat().st_size
    for arguments, code, said in (
        ([str(tmp_path / "none")], 2, "none is not a folder"),
        ([str(folder), "--inputs", str(page)], 2, "x.html is not a folder"),
        ([str(folder), "-o", "report.pdf"], 2, "report.pdf must end in .html"),
        ([str(tmp_path)], 1, "there is no"),
        ([str(folder), "-o", str(tmp_path / "no" / "x.html")], 1, "there is no folder"),
    ):
        capsys.readouterr()
        assert cli.main(["report", *arguments]) == code
        assert said in capsys.readouterr().err


def test_of_a_folder_that_the_command_filled(data: Path, tmp_path: Path, capsys: Any) -> None:
    """Real files: NIfTI, a DICOM series, a picture, and one that is broken."""
    pytest.importorskip("pydicom", reason="pydicom is not installed")
    pytest.importorskip("PIL", reason="Pillow is not installed")
    inputs, results = tmp_path / "in", tmp_path / "out"
    shutil.copytree(data / "dicom" / "study1", inputs / "study1")
    picture = sorted((data / "cardiac" / "images").glob("*.png"))[0]
    for path in (data / "hippocampus" / "images" / "hippocampus_001.nii.gz", picture):
        shutil.copy(path, inputs)
    (inputs / "broken.nii.gz").write_bytes((inputs / "hippocampus_001.nii.gz").read_bytes()[:9000])
    options = ["-m", "hippocampus", "--samples", "2", "--threads", "1", "-q"]
    assert cli.main(["segment", str(inputs), str(results), "--preview", str(tmp_path / "pictures"), *options]) == 1
    assert cli.main(["report", str(results), "--inputs", str(inputs)]) == 0
    cards = {card["data-name"]: card for card in Parsed(results / "report.html").cards}
    assert set(cards) == {"study1", "hippocampus_001.nii.gz", picture.name, "broken.nii.gz"}
    assert "broken.nii.gz is damaged or cut short" in cards["broken.nii.gz"]["text"]
    for name in ("study1", "hippocampus_001.nii.gz", picture.name):
        assert len(cards[name]["images"]) == 1
        links = cards[name]["links"].values()
        assert len(links) == 3
        assert all((results / unquote(link)).exists() for link in links)
    # the same pictures when they are drawn from masks and inputs
    cases = json.loads((results / "manifest.json").read_text())["cases"]
    cases = [{**case, "outputs": {k: v for k, v in case["outputs"].items() if k != "preview"}} for case in cases]
    write_manifest(results, cases)
    again = {card["data-name"]: card["images"] for card in Parsed(write_report(results, inputs=inputs)).cards}
    assert again == {name: card["images"] for name, card in cards.items()}


@pytest.mark.skipif(browser.find() is None, reason="there is no Chromium on the PATH")
def test_in_a_browser(folder: Path, tmp_path: Path) -> None:
    """Without network: nothing is asked for but the page, nothing complained of; it fits, and its controls work."""
    path = write_report(folder, inputs=tmp_path / "inputs")
    visible = "[...document.querySelectorAll('article')].filter(c => !c.hidden).map(c => c.dataset.name)"
    with browser.running(tmp_path / "profile") as chromium:
        for width, dark in ((1280, False), (400, False), (400, True)):
            page = browser.Page(chromium, width, 800, dark=dark)
            page.open(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
            assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 100)")
            everything = page.evaluate(visible)
            assert len(everything) == 10
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
                "rgb(17, 22, 26)" if dark else "rgb(244, 246, 247)"
            )

            page.evaluate("document.querySelector('.tile.review').click()")
            assert page.evaluate(visible) == ["sub/b.nii.gz"]
            assert page.evaluate("document.querySelector('#shown').textContent") == "1 of 10 cases"
            page.evaluate("document.querySelector('.tile.all').click()")
            assert page.evaluate(visible) == everything
            page.evaluate("find.value = 'ALERT'; find.dispatchEvent(new Event('input'))")
            assert sorted(page.evaluate(visible)) == sorted(HOSTILE[:3])
            page.evaluate("find.value = ''; find.dispatchEvent(new Event('input'))")
            page.evaluate("sort.value = 'name'; sort.dispatchEvent(new Event('change'))")
            assert page.evaluate(visible) == sorted(everything)
            assert page.complaints == []

            # what a hostile page would try: the policy stops each before it leaves
            image = (
                "new Promise(end => Object.assign(new Image(), {src: 'https://example.org/x', onerror: () => end(1)}))"
            )
            assert page.evaluate(image) == 1
            assert page.evaluate("fetch('https://example.org/').catch(() => 2)") == 2
            page.evaluate(
                "document.body.insertAdjacentHTML('beforeend', '<b onclick=\"window.ran = 1\" id=trap>x</b>')"
            )
            page.evaluate("document.getElementById('trap').click()")
            assert page.evaluate("window.ran") is None
            assert any("Content Security Policy" in complaint for complaint in page.complaints)
            assert [request for request in page.requests if not request.startswith("data:")] == [path.as_uri()]


# --- films ----------------------------------------------------------------------------------------------------


def frames(name: str, volumes: list[float]) -> list[dict[str, Any]]:
    return [{**label(round(ml * 1000), ml, name), "frame": n} for n, ml in enumerate(volumes)]


def test_a_film_has_a_curve_of_its_volumes(tmp_path: Path) -> None:
    volumes = [120.5, 100, 70.25, 60.25, 80, 110]
    cine = case("cine.nii.gz", labels=frames("left ventricle <b>", volumes))
    write_manifest(tmp_path, [cine, case("scan.nii.gz", labels=[label(50, 50.0)])])
    page = write_report(tmp_path).read_text(encoding="utf-8")
    card = page[page.index("<article") : page.index("</article>")]
    assert 'data-volume="120.5"' in card
    assert card.count("<svg") == 1
    assert "style=" not in page
    assert "<b>" not in card.replace("<b>50.0 %</b>", "")
    points = re.findall(r'<polyline points="([^"]+)"', card)[0].split()
    heights = [float(point.split(",")[1]) for point in points]
    assert np.argsort(heights).tolist() == np.argsort(volumes)[::-1].tolist()
    text = re.sub(r"<[^>]+>", " ", card)
    assert "End-diastole, frame 0" in text
    assert "End-systole, frame 3" in text
    assert "Ejection fraction  50.0 %" in text
    assert "541" not in text  # the sum of all


def test_a_missing_ejection_fraction_says_why(tmp_path: Path) -> None:
    write_manifest(tmp_path, [case("cine.nii.gz", labels=frames("LV", [120.0, 0.0, 90.0]))])
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert '<p class="fraction">No ejection fraction: nothing was found in frame 1</p>' in page


@pytest.mark.parametrize("wrong", [{"volume_ml": 1e999}, {"volume_ml": float("nan")}, {"frame": -1}, {"voxels": "1"}])
def test_a_film_that_pynca_did_not_write_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    labels = frames("LV", [2.0, 1.0, 3.0])
    labels[2] |= {"bounding_box": None, **wrong}
    write_manifest(tmp_path, [case("cine.nii.gz", labels=labels)])
    with pytest.raises(ValueError, match="is damaged or not pynca's"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("volumes", [[0.0, 0.0], [1.0, 0.0, 1.0], [1e-9, 2e-9], [1e7, 1e6]])
def test_a_curve_of_any_sizes(tmp_path: Path, volumes: list[float]) -> None:
    write_manifest(tmp_path, [case("cine.nii.gz", labels=frames("blob", volumes))])
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert "nan" not in page
    assert "Ejection" not in page
    assert "systole" not in page
