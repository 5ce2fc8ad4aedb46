"""What a freshly installed package must do: run, segment, train, in seconds even under emulation.

    python tests/smoke.py [ISA]

A script, not a test: the checks of wheels run it where there is no pytest, on CPUs that are emulated. Fails where
the instruction set is not ISA.
"""

from __future__ import annotations

import sys

import numpy as np

import pynca
from pynca import _core, training
from pynca.metrics import hard_dice
from pynca.phantom import hippocampus_phantom
from support import random_weights

pynca.show_config()
if sys.argv[1:] not in ([], [_core.isa()]):
    raise SystemExit(f"the instruction set is {_core.isa()}, not {sys.argv[1]}")

# two slices through the middle, in the direction that the bundled model cuts
image, truth = (array[:, :, 16:18] for array in hippocampus_phantom())
mask = pynca.segment(image)
dice = hard_dice(mask > 0, truth)
print(f"two slices of a phantom: {int(mask.sum())} mm3, Dice {dice:.2f}")
if dice < 0.6:
    raise SystemExit("the mask is not where the hippocampus is")

rule = pynca.Rule(random_weights("sobel", 8, 16), perception="sobel")
state = np.zeros((1, 6, 7, 8), np.float32)
loss, gradient, _ = training.gradients(rule, state, np.ones((1, 6, 7), np.float32), steps=2, seed=1)
print(f"a gradient of {len(gradient)} weights, loss {loss:.3f}")
if not np.isfinite(loss) or not all(np.isfinite(value).all() for value in gradient.values()):
    raise SystemExit("the gradient is not finite")
