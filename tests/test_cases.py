"""Which image has which label, what a dataset declares, and text files that choose cases."""

from __future__ import annotations

import codecs
import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pynca import cli
from pynca.cases import Case, Dataset, find_cases, only, read_dataset
from pynca.training.dataset import split


def folders(place: Path, images: str, labels: str) -> Dataset:
    """Make empty files of some names in two folders, and pair them."""
    for kind, names in (("images", images), ("labels", labels)):
        (place / kind).mkdir(parents=True)
        for name in names.split():
            (place / kind / name).write_bytes(b"")
    return find_cases(place / "images", place / "labels")


# --- pairs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels", "pairs"),
    [
        # frames that are numbered from 0: the very same name is a pair
        ("p_0000.png p_0001.png", "p_0000.png p_0001.png", "p_0000.png=p_0000.png p_0001.png=p_0001.png"),
        ("a.png a_0000.png", "a.png a_0000.png", "a.png=a.png a_0000.png=a_0000.png"),
        ("a_0000.nii.gz b_0000.nii.gz", "a.nii.gz b.nii.gz", "a_0000.nii.gz=a.nii.gz b_0000.nii.gz=b.nii.gz"),
        # other endings, other case
        ("a.nii.gz", "a.png", "a.nii.gz=a.png"),
        ("A.PNG b.Nii.GZ", "a.png B.nii", "A.PNG=a.png b.Nii.GZ=B.nii"),
        ("A_0000.PNG", "a.png", "A_0000.PNG=a.png"),
        ("A.png a.png", "A.png a.png", "A.png=A.png a.png=a.png"),
        # names as macOS and as others compose them
        (unicodedata.normalize("NFD", "é.png"), "é.png", unicodedata.normalize("NFD", "é.png") + "=é.png"),
        # of BIDS, and with dots
        ("sub-01_T1w.nii.gz s.1.2.png", "sub-01_T1w.nii.gz s.1.2.png", "s.1.2.png=s.1.2.png sub-01_T1w.nii.gz=*"),
        ("a_0000_0000.png", "a_0000.png", "a_0000_0000.png=a_0000.png"),
    ],
)
def test_an_image_has_the_label_of_its_name(tmp_path: Path, images: str, labels: str, pairs: str) -> None:
    found = folders(tmp_path, images, labels).cases
    wanted = [pair.replace("*", pair.split("=")[0]) for pair in pairs.split()]
    assert [f"{case.image.name}={case.label.name}" for case in found] == wanted
    assert [case.name for case in found] == [case.label.name for case in found]


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        ("a.png a_0000.png", "a.png", r"images/a.png and \S*images/a_0000.png are both images of \S*labels/a.png"),
        ("A.png a.png", "a.png", r"images/A.png and \S*images/a.png are both images of \S*labels/a.png"),
        ("a_0000.png", "a.png a_0000.png", r"labels/a.png and \S*labels/a_0000.png are both labels of \S*a_0000.png"),
        ("a.png", "A.png a.png", r"labels/A.png and \S*labels/a.png are both labels of \S*images/a.png"),
        ("x.png", "X.png x.tif", r"labels/X.png and \S*labels/x.tif are both labels of \S*images/x.png"),
        ("aB.png", "AB.png ab.png", r"labels/AB.png and \S*labels/ab.png are both labels of \S*images/aB.png"),
        ("a.png a.tif", "a.png", r"images/a.png and \S*images/a.tif have the same name"),
        ("a.png", "a.nii.gz a.png", r"labels/a.nii.gz and \S*labels/a.png have the same name"),
        ("a_0000.png a_0001.png", "a.png", r"images/a_0001.png is a further channel of its case"),
        ("a_0000.png a_0001.png", "a.png a_0001.png", r"images/a_0001.png is a further channel of its case"),
        ("a_0001.png", "a.png", r"images/a_0001.png has no label of the same name|labels/a.png has no image"),
        ("a.png b.png", "a.png", r"images/b.png has no label of the same name"),
        ("a.png", "a.png b.png", r"labels/b.png has no image of the same name"),
        ("a.png", "a_0000.png", r"labels/a_0000.png has no image of the same name"),
        ("", "a.png", r"images holds no image"),
    ],
)
def test_pairs_that_are_in_doubt_are_refused(tmp_path: Path, images: str, labels: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        folders(tmp_path, images, labels)


def test_an_image_is_not_its_own_label(tmp_path: Path) -> None:
    folders(tmp_path, "a.png", "a.png")
    with pytest.raises(ValueError, match=r"a\.png and its label \S*a\.png are one file"):
        find_cases(tmp_path / "images", tmp_path / "images")
    (tmp_path / "labels" / "a.png").unlink()
    (tmp_path / "labels" / "a.png").hardlink_to(tmp_path / "images" / "a.png")
    with pytest.raises(ValueError, match="are one file"):
        find_cases(tmp_path / "images", tmp_path / "labels")


NAMES = st.lists(st.sampled_from(["a", "A", "a_0000", "a_0001", "b", "b_0000", "B_0000"]), min_size=1, unique=True)


@given(images=NAMES, labels=NAMES)
def test_a_pair_is_the_same_name_or_the_only_choice(
    tmp_path_factory: pytest.TempPathFactory, images: list[str], labels: list[str]
) -> None:
    place = tmp_path_factory.mktemp("pairs")
    try:
        found = folders(place, " ".join(f"{n}.png" for n in images), " ".join(f"{n}.png" for n in labels)).cases
    except ValueError:
        assert set(images) != set(labels) or any(n.endswith("_0001") for n in images)
        return
    assert sorted(case.image.stem for case in found) == sorted(images)
    assert sorted(case.label.stem for case in found) == sorted(labels)
    for case in found:
        same = case.image.stem.lower() == case.label.stem.lower()
        assert same or case.image.stem.lower() == f"{case.label.stem.lower()}_0000"
        assert case.image.stem not in labels or case.image.stem == case.label.stem


# --- datasets --------------------------------------------------------------------------------------------


def dataset(place: Path, description: bytes) -> Path:
    for kind, name in (("imagesTr", "a_0000.nii.gz"), ("labelsTr", "a.nii.gz")):
        (place / kind).mkdir(parents=True)
        (place / kind / name).write_bytes(b"")
    (place / "dataset.json").write_bytes(description)
    return place


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ({"0": "background", "1": "one", "2": "two"}, {0, 1, 2}),
        ({"background": 0, "one": 1, "two": 2}, {0, 1, 2}),
        ({"1": "tumour", "2": "tumour"}, {0, 1, 2}),
        ({"BACKGROUND": 0, "1": 3}, {0, 3}),
        ({"background": "0", "one": "7"}, {0, 7}),
        ({"0": "background", "1": "2"}, {0, 1}),
        ({"background": 0, "ignored lesion": 1}, {0, 1}),
    ],
)
def test_declared_values(tmp_path: Path, labels: dict[str, object], values: set[int]) -> None:
    assert read_dataset(dataset(tmp_path, json.dumps({"labels": labels}).encode())).values == values


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_description_may_have_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    text = json.dumps({"labels": {"background": 0, "Läsion": 1}}, ensure_ascii=False)
    assert read_dataset(dataset(tmp_path, text.encode(encoding))).values == {0, 1}


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({"background": 0, "one": 1, "ignore": 2}, "declares the label 'ignore', 2: voxels that nobody annotated"),
        ({"background": 0, "one": 1, " Ignore": 2}, "declares the label ' Ignore', 2"),
        ({"0": "background", "1": "one", "2": "IGNORE"}, "declares the label 'IGNORE', 2"),
        ({"background": 0, "whole": [1, 2], "core": 2}, r"'whole' is a region of several values, \[1, 2\]"),
        ({"background": 1, "one": 0}, "declares 'background' as 1; the background must be 0"),
        ({"background": 0}, "declares no label above 0"),
        ({}, "declares no label above 0"),
        ({"one": 256}, "'one' is 256; labels are whole numbers from 0 to 255"),
        ({"one": -1}, "'one' is -1"),
        ({"one": 1.5}, "'one' is 1.5"),
        ({"one": True}, "'one' is True"),
        ({"one": None}, "'one' is None"),
        ({"one": float("inf")}, "it holds Infinity"),
        ({"one": 10**400}, "a number of 401 digits"),
        (["background", "one"], "must be an object"),
        (None, "must be an object"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(tmp_path: Path, labels: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        read_dataset(dataset(tmp_path, json.dumps({"labels": labels}).encode()))
    assert "dataset.json" in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"7", b"{", b'{"labels": 1}', b"\xff\xff", b'{"labels":' + b"[" * 100_000]
)
def test_descriptions_that_are_none(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(ValueError, match=r"dataset\.json"):
        read_dataset(dataset(tmp_path, text))


def test_ignored_voxels_are_refused_in_the_folders_themselves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given the folders of images and labels, what lies beside them still says that some voxels do not count."""
    place = dataset(tmp_path, json.dumps({"labels": {"background": 0, "one": 1, "ignore": 2}}).encode())
    source = ["--images", str(place / "imagesTr"), "--labels", str(place / "labelsTr")]
    for command in (
        ["evaluate", *source],
        ["calibrate", "hippocampus", *source, "-o", str(tmp_path / "m.safetensors")],
        ["train", *source, "-o", str(tmp_path / "m.safetensors")],
        ["train", "--dataset", str(place), "-o", str(tmp_path / "m.safetensors")],
    ):
        assert cli.main(command) == 2
        assert "declares the label 'ignore', 2" in capsys.readouterr().err
    (place / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "whole": [1, 2]}}))
    assert len(find_cases(place / "imagesTr", place / "labelsTr").cases) == 1


# --- text files that choose ------------------------------------------------------------------------------

CASES = [
    Case(name, Path("images") / name, Path("labels") / name, group)
    for name, group in (
        ("a b.png", "a b"),
        ("c.png", "P 1"),
        ("d.png", "P 1"),
        ("é.png", "é"),
        ('"q".png', "q"),
        ("#5.png", "5"),
        (" s.png", "s"),
    )
]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a b.png\n", ["a b.png"]),
        ("P 1\r\na b\r\n", ["a b.png", "c.png", "d.png"]),
        ("c.png\rd.png", ["c.png", "d.png"]),
        ("\n\n  c.png  \n\n", ["c.png"]),
        ("# validation\n#\nc.png\n", ["c.png"]),
        ("#5.png\n", ["#5.png"]),
        ("\"a b.png\"\n'P 1'\n", ["a b.png", "c.png", "d.png"]),
        ('"q".png\n', ['"q".png']),
        (" s.png\n", [" s.png"]),
        (unicodedata.normalize("NFD", "é.png"), ["é.png"]),
        ("c.png\nc.png\n", ["c.png"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_names_are_read_line_by_line(tmp_path: Path, text: str, names: list[str], encoding: str) -> None:
    (tmp_path / "names.txt").write_bytes(text.encode(encoding))
    assert [case.name for case in only(CASES, tmp_path / "names.txt")] == names


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="this system has no /dev/fd")
def test_names_may_come_from_a_pipe_of_the_shell(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"c.png\n")
    os.close(write)
    try:
        assert [case.name for case in only(CASES, f"/dev/fd/{read}")] == ["c.png"]
    finally:
        os.close(read)
    os.mkfifo(tmp_path / "names.txt")
    with pytest.raises(ValueError, match=r"names\.txt is a pipe; it must be a file"):
        only(CASES, tmp_path / "names.txt")


def test_marks_within_and_big_endian(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes((codecs.BOM_UTF8 + b"c.png\n") * 2)
    assert [case.name for case in only(CASES, tmp_path / "names.txt")] == ["c.png"]
    (tmp_path / "names.txt").write_bytes(codecs.BOM_UTF16_BE + "a b\n".encode("utf-16-be"))
    assert [case.name for case in only(CASES, tmp_path / "names.txt")] == ["a b.png"]


def test_a_name_that_is_no_text_keeps_its_bytes(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    (tmp_path / "names.txt").write_bytes(b"caf\xe9.png\n")
    assert only([Case(name, Path(name), Path(name))], tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "names no case"),
        (b"\n \r\n# nothing\n", "names no case"),
        (codecs.BOM_UTF8, "names no case"),
        (codecs.BOM_UTF16_LE, "names no case"),
        (b"no.png\n", "names no.png, which is neither among the labels nor among the patients"),
        (b"C.PNG\n", "names C.PNG, which is neither"),
        (b"c.png d.png\n", "names c.png d.png, which is neither"),
        (b"#6.png\n", "names #6.png, which is neither"),
        (codecs.BOM_UTF16_LE + b"a", "is no text in UTF-8 or UTF-16"),
        (b"c.png\n\0\0\0", "is no text in UTF-8 or UTF-16"),
        (b"x" * 100_000, "names x{200}, which"),
        (b"\n" * (16 * 2**20 + 1), "has more than 16777216 bytes"),
    ],
    ids=range(12),
)
def test_names_that_choose_nothing_are_refused(tmp_path: Path, data: bytes, sentence: str) -> None:
    (tmp_path / "names.txt").write_bytes(data)
    with pytest.raises(ValueError, match=sentence) as caught:
        only(CASES, tmp_path / "names.txt")
    assert "names.txt" in str(caught.value)
    with pytest.raises(ValueError, match=sentence):
        split(Dataset(CASES), tmp_path / "names.txt")


@pytest.mark.parametrize("option", ["--cases", "--leave-out", "--validation"])
@pytest.mark.parametrize("text", ["", "# none\n"])
def test_an_empty_choice_is_wrong_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, text: str
) -> None:
    folders(tmp_path, "a.nii.gz b.nii.gz", "a.nii.gz b.nii.gz")
    (tmp_path / "names.txt").write_text(text)
    model = str(tmp_path / "m.safetensors")
    before = sorted(tmp_path.rglob("*"))
    command = {
        "--cases": ["evaluate"],
        "--leave-out": ["calibrate", "hippocampus", "-o", model],
        "--validation": ["train", "-o", model],
    }
    source = ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")]
    assert cli.main([*command[option], *source, option, str(tmp_path / "names.txt")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "names no case; write a patient or the file name of a label on each line" in said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_leaving_out_all_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders(tmp_path, "a.nii.gz b.nii.gz", "a.nii.gz b.nii.gz")
    (tmp_path / "names.txt").write_text("a.nii.gz\nb.nii.gz\n")
    source = ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")]
    command = ["calibrate", "hippocampus", *source, "--leave-out", str(tmp_path / "names.txt")]
    assert cli.main([*command, "-o", str(tmp_path / "m.safetensors")]) == 2
    assert "leaves 0 of 2 cases" in capsys.readouterr().err


def test_no_case_scored_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders(tmp_path, "a.nii.gz b.nii.gz", "a.nii.gz b.nii.gz")  # empty files
    source = ["--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")]
    assert cli.main(["evaluate", *source, "-o", str(tmp_path / "scores.csv")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == "pynca: no case of 2 could be measured"
    assert not (tmp_path / "scores.csv").exists()


def test_a_subject_of_bids_on_both_sides_is_said(tmp_path: Path) -> None:
    names = [f"sub-{n}_ses-{s}_T1w.nii.gz" for n in (1, 2, 3) for s in (1, 2)]
    found = folders(tmp_path, " ".join(names), " ".join(names))
    with pytest.warns(UserWarning, match=r"sub-1 trains and validates.*'sub-\[\^_\]\+' as the pattern to group by"):
        split(found, "0.5")
    rest, held = split(find_cases(tmp_path / "images", tmp_path / "labels", "sub-[^_]+"), "0.34")
    assert (len(rest), len(held)) == (4, 2)


def test_a_share_says_how_many_patients_there_are(tmp_path: Path) -> None:
    cases = [Case(f"case_{n}.png", Path(), Path(), "case") for n in range(3)]
    with pytest.raises(ValueError, match=r"of 3 cases of 1 patient 0 would validate; both sides need at least one"):
        split(Dataset(cases), "0.2")
    assert len(split(Dataset(cases), "none")[0]) == 3
