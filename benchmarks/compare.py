"""Two machines' results beside each other: a table, and a picture of it.

    python benchmarks/compare.py A.json B.json [-o comparison.png]

The files are those that `pytest --benchmark` writes into benchmarks/results. The ratio is B's time in A's.
"All threads" are as many as each machine has.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import results
from results import Results

DEFAULT_PICTURE = Path("comparison.png")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", type=Path, metavar="A.json")
    parser.add_argument("b", type=Path, metavar="B.json")
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", help=f"default: {DEFAULT_PICTURE}")
    chosen = parser.parse_args(arguments)
    try:
        a, b = results.read(chosen.a), results.read(chosen.b)
        names = [name for name in a["cases"] if name in b["cases"]]
        if not names:
            raise ValueError(f"{chosen.a} and {chosen.b} have no case in common")
        print("\n".join(table(a, b, names)))
        print(draw(a, b, names, chosen.output))
    except ValueError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    return 0


def table(a: Results, b: Results, names: list[str]) -> list[str]:
    """Every line of what is printed."""
    rows = [("case", "time A", "time B", "B / A", "of peak A", "of peak B")]
    for name in names:
        one, other = a["cases"][name], b["cases"][name]
        rows.append(
            (
                name,
                results.duration(one["seconds"]),
                results.duration(other["seconds"]),
                f"{other['seconds'] / one['seconds']:.2f}",
                results.percent(one.get("fraction")),
                results.percent(other.get("fraction")),
            )
        )
    head = [f"{letter}: {results.machine_line(found['machine'])}" for letter, found in (("A", a), ("B", b))]
    alone = len(a["cases"].keys() ^ b["cases"].keys())
    return [*head, "", *results.columns(rows), *([f"measured on one of them alone: {alone} more"] if alone else [])]


def draw(a: Results, b: Results, names: list[str], output: Path | None) -> str:
    """Draw times and fractions of peak, and say where. Without matplotlib only a picture asked for is an error."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        sentence = "the picture needs matplotlib: run `pip install '.[plot]'`"
        if output is not None:
            raise ValueError(sentence) from None
        return sentence
    path = output or DEFAULT_PICTURE
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} must end in .png")

    figure, (times, fractions) = pyplot.subplots(
        1, 2, figsize=(12, 1.5 + 0.32 * len(names)), sharey=True, layout="constrained"
    )
    places = list(range(len(names)))
    for letter, found, colour, shift in (("A", a, "tab:blue", -0.2), ("B", b, "tab:orange", 0.2)):
        cases = [found["cases"][name] for name in names]
        at = [place + shift for place in places]
        label = f"{letter}: {found['machine']['cpu']}, {found['machine']['isa']}"
        times.barh(at, [1e3 * case["seconds"] for case in cases], 0.4, color=colour, label=label)
        fractions.barh(at, [100 * (case.get("fraction") or 0) for case in cases], 0.4, color=colour)
    times.set(xscale="log", xlabel="time, ms", yticks=places, yticklabels=names)
    times.set_ylim(len(names) - 0.4, -0.6)
    fractions.set(xlabel="fraction of the machine's own FMA peak, %", xlim=(0, 100))
    for axes in (times, fractions):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        pyplot.close(figure)
    return f"drawn in {path}"


if __name__ == "__main__":
    sys.exit(main())
