"""What a model finds where there is nothing: windows beside the label, as a clinic's slices without the organ.

    python benchmarks/negatives.py MODEL --images DIR --labels DIR [--cases FILE] [--windows 4]

From each slice some square windows without the label are cut, as in training but of their own draw, and enlarged to the
model's size. Printed are the share of windows in which anything is found, and the area of what is found.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import pynca
from pynca.cases import find_cases, only
from pynca.training.dataset import prepare
from pynca.training.sampling import vary, window
from robustness import NOTHING


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--windows", type=int, default=4, help="of each slice (default 4)")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()

    model = pynca.load_model(arguments.model)
    dataset = find_cases(arguments.images, arguments.labels)
    cases = dataset.cases if arguments.cases is None else only(dataset.cases, arguments.cases)
    slices = prepare(cases, dataset, model.preparation)
    random = np.random.Generator(np.random.Philox(key=0))
    height, width = model.preparation.size
    shares, skipped = [], 0
    for image, label in zip(slices.images, slices.labels, strict=True):
        windows = np.array([window(label, random) for _ in range(arguments.windows)])
        repeated = (array[None].repeat(len(windows), axis=0) for array in (image, label))
        for enlarged, seen in zip(*vary(*repeated, NOTHING, random, windows), strict=True):
            if seen.any():
                skipped += 1
                continue
            shares.append(float((model.logits(enlarged, threads=arguments.threads) > 0).mean()))
    found = np.array(shares)
    # as large as the model takes them for, enlarged as they are
    area = found * (height * width * model.preparation.spacing[0] * model.preparation.spacing[1] / 100)
    print(f"{len(found)} windows of {len(cases)} slices; {skipped} more showed some of the label and were left out")
    for least in (0.0, 1.0, 4.0):
        print(f"more than {least:g} cm2 found in {100 * np.mean(area > least):5.1f} % of them")
    print(f"area found: mean {area.mean():.2f} cm2, in 95 % of them at most {np.percentile(area, 95):.2f} cm2")


if __name__ == "__main__":
    main()
