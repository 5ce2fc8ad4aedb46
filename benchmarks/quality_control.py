"""How well input checks and verdicts tell good segmentations from bad ones, on volumes that were held back.

    python benchmarks/quality_control.py MODEL --data ../shared/data --cases benchmarks/hippocampus_validation.txt

MODEL segments crops around a hippocampus. Every held-back volume is segmented as it is, and every so many-th changed in
many ways, from harmless to ruinous, in its own voxels; images of other regions and modalities go along. Each is
checked, segmented once and by an ensemble, and judged. Dice is against the whole organ, also where a change cut it; it
counts as 0 where there is no hippocampus and where the header lies, so that a right-looking mask has the wrong place
or size. `--csv` keeps every case.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pynca
from pynca.cases import find_cases, only
from pynca.inputs import check_input
from pynca.quality import confidence, judge
from pynca.volumes import Orientation, Volume, read_volume

Image = NDArray[np.float64]
Truth = NDArray[np.bool_]
Change = Callable[[Image, Truth, np.random.Generator], tuple[Image, Truth]]
BAD = 0.8  # hard Dice under which a segmentation is a bad one


# --- changes: of an image with values from 0 to 1 in RAS, with its label ---------------------------------


def noise(sd: float) -> Change:
    return lambda x, t, random: (np.clip(x + sd * random.standard_normal(x.shape), 0, 1), t)


def ghosting(strength: float) -> Change:
    """Two copies of the volume, a third of its length away on either side."""

    def change(x: Image, t: Truth, random: np.random.Generator) -> tuple[Image, Truth]:
        away = x.shape[1] // 3
        copies = (np.roll(x, away, axis=1) + np.roll(x, -away, axis=1)) / 2
        return np.clip(x + strength * 0.25 * copies, 0, 1), t

    return change


def bias_field(strength: float) -> Change:
    """Brightness that falls from one corner to the opposite one by the factor exp(-2 strength)."""

    def change(x: Image, t: Truth, random: np.random.Generator) -> tuple[Image, Truth]:
        ramp = np.linspace(-1, 1, x.shape[0])[:, None, None] / 2 + np.linspace(-1, 1, x.shape[1])[:, None] / 2
        return np.clip(x * np.exp(strength * ramp), 0, 1), t

    return change


def gamma(power: float) -> Change:
    return lambda x, t, random: (x**power, t)


def inverted(x: Image, t: Truth, random: np.random.Generator) -> tuple[Image, Truth]:
    return 1 - x, t


def blur(times: int) -> Change:
    """Smooth with 1, 2, 1 along every axis, so many times."""

    def change(x: Image, t: Truth, random: np.random.Generator) -> tuple[Image, Truth]:
        for _ in range(times):
            for axis in range(3):
                wide = np.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
                n = x.shape[axis]
                x = sum(w * wide.take(range(k, k + n), axis) for k, w in enumerate((0.25, 0.5, 0.25)))
        return x, t

    return change


def resampled(*at: Callable[[int], NDArray[np.float64]]) -> Change:
    """Read the nearest voxel at positions along each axis; beyond the border, the border's."""

    def change(x: Image, t: Truth, random: np.random.Generator) -> tuple[Image, Truth]:
        for axis, positions in enumerate(at):
            n = x.shape[axis]
            place = np.rint(positions(n)).astype(int)
            x = x.take(np.clip(place, 0, n - 1), axis)
            inside = ((place >= 0) & (place < n)).reshape([-1 if a == axis else 1 for a in range(3)])
            t = t.take(np.clip(place, 0, n - 1), axis) & inside
        return x, t

    return change


def scaled(by: float) -> Change:
    return resampled(*[lambda n: (np.arange(n) - (n - 1) / 2) / by + (n - 1) / 2] * 3)


def shifted(by: int, axis: int) -> Change:
    return resampled(*[lambda n, a=a: np.arange(n) - (by if a == axis else 0.0) for a in range(3)])  # type: ignore[misc]


def thinned(*by: float) -> Change:
    """Keep one of so many voxels along each axis; below 1, repeat them."""
    return resampled(*[lambda n, k=k: np.arange(round(n / k)) * k + (k - 1) / 2 for k in by])  # type: ignore[misc]


def turned(*order: int, flip: Sequence[int] = ()) -> Change:
    """Axes in another order or reversed, while the header says what it said: its orientation is wrong."""

    def change(x: Image, t: Truth, random: np.random.Generator) -> tuple[Image, Truth]:
        return np.flip(x.transpose(order), flip), np.flip(t.transpose(order), flip)

    return change


def embedded(margin: int, mode: Any) -> Change:
    """A larger field of view: zeros around, the border's values, or mirrored anatomy, the nearest to a whole head."""
    return lambda x, t, random: (np.pad(x, margin, mode=mode), np.pad(t, margin))


def half(x: Image, t: Truth, random: np.random.Generator) -> tuple[Image, Truth]:
    return x[: len(x) // 2], t[: len(t) // 2]


def few_slices(x: Image, t: Truth, random: np.random.Generator) -> tuple[Image, Truth]:
    middle = x.shape[2] // 2
    return x[..., middle - 4 : middle + 4], t[..., middle - 4 : middle + 4]


def lost_slices(x: Image, t: Truth, random: np.random.Generator) -> tuple[Image, Truth]:
    x, middle = x.copy(), x.shape[2] // 2
    x[..., middle - 4 : middle + 4] = 0
    return x, t


# Change, and what it makes of the spacing
CHANGES: dict[str, tuple[Change, tuple[float, float, float]]] = {
    name: (change, spacing)
    for name, change, spacing in (
        *((f"noise {sd:g}", noise(sd), (1, 1, 1)) for sd in (0.1, 0.2, 0.4)),
        *((f"ghosting {s:g}", ghosting(s), (1, 1, 1)) for s in (1, 2, 4)),
        *((f"bias field {s:g}", bias_field(s), (1, 1, 1)) for s in (0.7, 1.5, 3)),
        *((f"gamma {p:g}", gamma(p), (1, 1, 1)) for p in (0.5, 2)),
        ("inverted contrast", inverted, (1, 1, 1)),
        *((f"blur, {n} times", blur(n), (1, 1, 1)) for n in (4, 8)),
        *((f"scale {s:g}", scaled(s), (1, 1, 1)) for s in (0.6, 0.8, 1.3, 1.6)),
        *((f"shift {n} mm", shifted(n, 0), (1, 1, 1)) for n in (5, 10, 15)),
        ("slices of 3 mm", thinned(1, 1, 3), (1, 1, 3)),
        ("slices of 5 mm", thinned(1, 1, 5), (1, 1, 5)),
        ("voxels of 0.5 mm", thinned(0.5, 0.5, 1), (0.5, 0.5, 1)),
        ("voxels of 3 mm", thinned(3, 3, 3), (3, 3, 3)),
        ("header says 2 mm", lambda x, t, random: (x, t), (2, 2, 2)),
        ("header flips x", turned(0, 1, 2, flip=[0]), (1, 1, 1)),
        ("header flips y", turned(0, 1, 2, flip=[1]), (1, 1, 1)),
        ("header flips z", turned(0, 1, 2, flip=[2]), (1, 1, 1)),
        ("header swaps x, y", turned(1, 0, 2), (1, 1, 1)),
        ("header swaps y, z", turned(0, 2, 1), (1, 1, 1)),
        ("5 mm more around", embedded(5, "edge"), (1, 1, 1)),
        ("10 mm more around", embedded(10, "edge"), (1, 1, 1)),
        ("20 mm of zeros around", embedded(20, "constant"), (1, 1, 1)),
        ("50 mm mirrored around", embedded(50, "symmetric"), (1, 1, 1)),
        ("half of it", half, (1, 1, 1)),
        ("8 slices", few_slices, (1, 1, 1)),
        ("8 slices lost", lost_slices, (1, 1, 1)),
    )
}


_CUT = (half, few_slices)


def variants(image: Path, label: Path, key: int) -> Iterator[tuple[str, Volume, Truth | None, int]]:
    """The case as it is, and changed in every way: image, label, and how many voxels the whole organ has."""
    volume, truth = read_volume(image), read_volume(label)
    yield "as it is", volume, truth.data > 0, np.count_nonzero(truth.data)
    assert volume.affine is not None
    way = Orientation.between(volume.affine, "RAS")
    x, t = way.apply(volume.data).astype(np.float64), way.apply(truth.data > 0)
    low, high = np.percentile(x, (0.5, 99.5))
    x = np.clip((x - low) / (high - low), 0, 1)
    for n, (name, (change, spacing)) in enumerate(CHANGES.items()):
        data, mask = change(x, t, np.random.Generator(np.random.Philox(key=[key, n])))
        whole = np.count_nonzero(t if change in _CUT else mask)
        lies = Volume(data.astype(np.float32), np.diag([*spacing, 1.0]), None, image.name)
        yield name, lies, None if name.startswith("header") else mask, whole


def others(data: Path) -> Iterator[tuple[str, Volume]]:
    """Other regions and modalities: whole, and cut to the size of a hippocampus crop with a header that claims 1 mm."""
    random = np.random.Generator(np.random.Philox(key=0))

    def crops(what: str, volume: NDArray[Any], count: int) -> Iterator[tuple[str, Volume]]:
        volume = volume.repeat(3, axis=0).repeat(3, axis=1).repeat(3, axis=2) if min(volume.shape) < 36 else volume
        for _ in range(count):
            corner = [int(random.integers(0, n - m + 1)) for n, m in zip(volume.shape, (35, 50, 36), strict=True)]
            i, j, k = (slice(c, c + m) for c, m in zip(corner, (35, 50, 36), strict=True))
            yield what, Volume(np.ascontiguousarray(volume[i, j, k]), np.eye(4), None, what)

    for what, name in (("CT", "example_ct_sm.nii.gz"), ("abdominal MR", "example_mr_sm.nii.gz")):
        volume = read_volume(data / "volumes" / name)
        yield what, volume
        yield from crops(f"{what}, cut", volume.data, 10)
    patients: dict[str, list[Path]] = {}
    for path in sorted((data / "cardiac" / "images").glob("*.png")):
        patients.setdefault(path.stem.rpartition("_")[0], []).append(path)
    for paths in list(patients.values())[:10]:
        stack = np.stack([read_volume(path).data for path in paths], axis=-1)
        yield "cardiac MR", Volume(stack, np.diag([1.35, 1.35, 8, 1.0]), None, "cardiac")
        middle = stack[80:176, 80:176].repeat(3, axis=2)
        yield from crops("cardiac MR, cut", middle, 1)


# --- what is measured --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    what: str
    dice: float
    refused: bool
    nqm: float
    confidence: float
    review_ensemble: bool
    review_single: bool


def measured(
    what: str, volume: Volume, truth: Truth | None, whole: int, model: pynca.Model, samples: int, threads: int
) -> Row:
    plain = replace(model, expected=None)  # a verdict on the result alone
    one = pynca.predict(volume, plain, threads=threads)
    many = pynca.predict(volume, plain, samples=samples, threads=threads)
    assert many.nqm is not None
    return Row(
        what,
        0.0 if truth is None else 2 * np.count_nonzero(truth & (many.mask > 0)) / (np.count_nonzero(many.mask) + whole),
        bool(check_input(volume, model)),
        many.nqm if np.isfinite(many.nqm) else np.inf,
        confidence(one.probability, one.mask),
        judge(many, plain)[0] == "review",
        judge(one, plain)[0] == "review",
    )


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0, equal values sharing their mean."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[place]


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's rank correlation."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def area(scores: NDArray[np.float64], bad: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a bad one scores higher than one that is not."""
    return float((ranks(scores)[bad].sum() - bad.sum() * (bad.sum() - 1) / 2) / (bad.sum() * (~bad).sum()))


def report(rows: Sequence[Row], samples: int) -> str:
    columns = ("refused", "review_single", "review_ensemble")
    lines = [
        f"| input | n | Dice | under {BAD:g} | refused | review, one run | review, {samples} runs |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for what in dict.fromkeys(row.what for row in rows):
        group = [row for row in rows if row.what == what]
        dice = np.array([row.dice for row in group])
        marked = " | ".join(f"{np.mean([getattr(row, c) for row in group]):.0%}" for c in columns)
        lines.append(f"| {what} | {len(group)} | {dice.mean():.3f} | {(dice < BAD).mean():.0%} | {marked} |")
    dice = np.array([row.dice for row in rows])
    bad = dice < BAD
    lines += [
        "",
        f"| of {len(rows)} | marked of {bad.sum()} bad | marked of {(~bad).sum()} good |",
        "| --- | --- | --- |",
    ]
    marks = {c: np.array([getattr(row, c) for row in rows]) for c in columns}
    marks["refused or review, one run"] = marks["refused"] | marks["review_single"]
    marks[f"refused or review, {samples} runs"] = marks["refused"] | marks["review_ensemble"]
    for name, marked in marks.items():
        lines.append(f"| {name.replace('_', ', ')} | {marked[bad].mean():.1%} | {marked[~bad].mean():.1%} |")
    true = [row for row in rows if not row.what.startswith("header")]  # no result shows that its header lies
    dice, bad = np.array([row.dice for row in true]), np.array([row.dice < BAD for row in true])
    lines += ["", f"| of {len(true)} whose header is right | rank correlation with Dice | area under the ROC curve |"]
    lines += ["| --- | --- | --- |"]
    for name, scores in (
        (f"NQM, {samples} runs", np.array([row.nqm for row in true])),
        ("1 - confidence, one run", 1 - np.array([row.confidence for row in true])),
    ):
        lines.append(f"| {name} | {correlation(scores, dice):.3f} | {area(scores, bad):.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True, help="folder with hippocampus, volumes, cardiac, dicom")
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--every", type=int, default=5, help="change one case of so many (default 5)")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    model = pynca.load_model(arguments.model)
    how = (model, arguments.samples, arguments.threads)
    folder = arguments.data / "hippocampus"
    cases = only(find_cases(folder / "images", folder / "labels").cases, arguments.cases)
    rows = []
    for n, case in enumerate(cases):
        for what, volume, truth, whole in variants(case.image, case.label, n):
            if what == "as it is" or n % arguments.every == 0:
                rows.append(measured(what, volume, truth, whole, *how))
    rows += [measured(what, volume, None, 0, *how) for what, volume in others(arguments.data)]
    print(report(sorted(rows, key=lambda row: row.what != "as it is"), arguments.samples))
    for series in sorted((arguments.data / "dicom").iterdir()):
        volume = read_volume(series)
        result = pynca.predict(volume, model, samples=arguments.samples, threads=arguments.threads)
        print(
            f"\n{series.name}: {check_input(volume, model) or 'accepted'}, NQM {result.nqm:.3f}, {judge(result, model)}"
        )
    if arguments.csv is not None:
        with open(arguments.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    main()
