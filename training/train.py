"""What `pynca train` does: cases in, a model file, its log and its learning curve out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pynca import Card, Model, Preparation, _core
from pynca.cases import Case, Dataset, digest, evenly, find_cases
from pynca.config import thread_count
from pynca.evaluation import patient_dice, score_file
from pynca.files import atomic_path
from pynca.inputs import learn_expected
from pynca.seal import TEXT
from pynca.volumes import read_volume

from .ahead import Batches
from .dataset import check_validation, preparation_for, prepare, split
from .fit import fit_slices, train_batch
from .recipe import Recipe
from .sampling import Slices
from .state import STATE, State, load_state, saved_recipe

# During training a few cases stand for all: a full evaluation would take longer than the batches between two.
_SELECTING = 16  # patients
_IMAGES = 48  # of pictures, so many
_EVALUATIONS = 20


@dataclass(frozen=True)
class Outcome:
    """What came out of a training.

    Parameters
    ----------
    model : pynca.Model
    scores : sequence of float
        Hard Dice of each validation patient, in the images' own voxels; empty without validation.
    seconds : float
    """

    model: Model
    scores: Sequence[float]
    seconds: float


def fit(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    preparation: Preparation | None = None,
    validation: str | os.PathLike[str] = "0.2",
    group_by: str | None = None,
    label: str = "foreground",
    card: Card | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    report: Callable[[dict[str, float]], None] = lambda entry: None,
) -> Outcome:
    """Train on folders of images and labels: what ``pynca train`` does, from Python.

    Parameters
    ----------
    images, labels : path
        Folders of volumes or pictures, paired by name. Every label above 0 counts as the label.
    folder : path
        Where state and log are written, and read from with ``resume``.
    recipe : Recipe, optional
        Default `Recipe.for_size` of the prepared slices.
    preparation : pynca.Preparation, optional
        How slices are prepared. Default: RAS, sliced along the last axis, volumes at 64 x 64, pictures in the size of
        the first.
    validation : str or path
        A share of the patients, a text file of patients or label names, or ``"none"``. Default ``"0.2"``.
    group_by : str, optional
        What finds the patient in a name, as of `pynca.cases.find_cases`.
    label : str
        What the model segments.
    card : pynca.Card, optional
        What the card says beside what training finds out.
    epochs, minutes : float, optional
        Length of the training instead of the recipe's number of batches: passes through all slices, or time.
    resume : bool
        Go on from the state in ``folder``, at exactly the point where it was saved. Default False.
    overwrite : bool
        Begin anew where the state is not pynca's, or was changed since. Default False.
    threads : int, optional
        The result does not depend on it.
    report : callable, optional
        Called at every evaluation with batch, loss, score, rate, attempt and seconds. The score is the validation
        Dice, and not a number where it was not measured.

    Returns
    -------
    Outcome

    Raises
    ------
    ValueError
        Images and labels do not fit each other, or an argument is out of range.
    RuntimeError
        The run failed again and again, at ever lower rates.
    """
    dataset = find_cases(images, labels, group_by)
    cases, held = split(dataset, validation)
    preparation = preparation or preparation_for(cases[0])
    recipe = recipe or Recipe.for_size(preparation.size)
    recipe.check_size(preparation.size)
    return train(
        dataset,
        cases,
        held,
        recipe,
        preparation,
        folder,
        labels={1: label},
        card=card,
        epochs=epochs,
        minutes=minutes,
        resume=resume,
        overwrite=overwrite,
        threads=threads,
        report=report,
    )


def train(
    dataset: Dataset,
    cases: Sequence[Case],
    validation: Sequence[Case],
    recipe: Recipe,
    preparation: Preparation,
    folder: str | os.PathLike[str],
    *,
    labels: dict[int, str],
    card: Card | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    report: Callable[[dict[str, float]], None] = lambda entry: None,
    tick: Callable[[State, Recipe], None] = lambda state, recipe: None,
) -> Outcome:
    """Prepare the cases, fit, and score every validation case; ``folder`` gets state and log.

    The training is ``epochs`` passes through all slices, or as many batches as fit into ``minutes``, or
    ``recipe.batches``. With ``resume`` the recipe is the one that the saved state was written with.
    """
    began = time.monotonic()
    if resume:  # first, since it takes but a moment to see that there is nothing to go on from
        recipe = saved_recipe(Path(folder) / STATE)
        began -= load_state(Path(folder) / STATE, recipe).seconds
    check_validation(validation, dataset)
    _warn_of_copies(cases, validation)
    slices = prepare(cases, dataset, preparation)
    if not resume and epochs is not None:
        recipe = _of_length(recipe, math.ceil(epochs * len(slices.images) / recipe.batch))
    elif not resume and minutes is not None:
        recipe = _of_length(recipe, batches_in(minutes, slices, recipe, preparation, threads))
    some = set(evenly(list(dict.fromkeys(case.group for case in validation)), _SELECTING))
    chosen = evenly([case for case in validation if case.group in some], _IMAGES)

    def dice(model: Model, cases: Sequence[Case]) -> list[float]:
        """The Dice of each patient."""
        scores = [score_file(model, c.image, c.label, patient=c.group, threads=threads) for c in cases]
        return list(patient_dice(scores).values())

    model = fit_slices(
        slices,
        recipe,
        preparation,
        score=(lambda model: float(np.mean(dice(model, chosen)))) if chosen else None,
        folder=folder,
        resume=resume,
        judges="".join(digest(path) for case in chosen for path in (case.image, case.label)),
        overwrite=overwrite,
        report=report,
        tick=tick,
        threads=threads,
        labels=labels,
        card=card or Card(),
    )
    scores = dice(model, validation)
    seconds = time.monotonic() - began
    expected = learn_expected((read_volume(case.image) for case in cases), preparation)
    card = described(model.card, recipe, cases, scores, seconds, thread_count(threads))
    return Outcome(replace(model, card=card, expected=expected), scores, seconds)


def described(
    card: Card, recipe: Recipe, cases: Sequence[Case], scores: Sequence[float], seconds: float, threads: int
) -> Card:
    """Say in the card what the model was trained on, how, and how well it did."""
    names = hashlib.sha256("\n".join(case.name for case in cases).encode()).hexdigest()[:16]
    if scores:
        accuracy = (
            f"hard Dice in native voxels, {len(scores)} validation patients: {np.mean(scores):.4f} +- "
            f"{np.std(scores):.4f} (smallest {min(scores):.4f})"
        )
    else:
        accuracy = "not measured: trained without validation"
    return replace(
        card,
        description=card.description
        or f"Med-NCA of {len(recipe.scales)} levels, {recipe.channels} channels, hidden {recipe.hidden}.",
        accuracy=card.accuracy or accuracy,
        source=f"pynca train, seed {recipe.seed}, {recipe.batches} batches of {recipe.batch}, {recipe.optimizer}, "
        f"{len(cases)} images "
        f"(names' sha256 {names}), {seconds / 60:.0f} min on {threads} threads, {_core.isa()}, "
        f"{platform.machine()}",
    )


def _warn_of_copies(cases: Sequence[Case], validation: Sequence[Case]) -> None:
    """Say where the same image trains and validates: what is measured then flatters the model."""
    trained = {digest(case.image): case.image for case in cases} if validation else {}
    copies = [(trained[key], case.image) for case in validation if (key := digest(case.image)) in trained]
    if copies:
        warnings.warn(
            f"{copies[0][0]} trains and {copies[0][1]} validates, but they are the same image"
            f"{f', and so are {len(copies) - 1} more' * (len(copies) > 1)}; the validation Dice will flatter the model",
            stacklevel=3,
        )


def _of_length(recipe: Recipe, batches: int) -> Recipe:
    """Return a recipe of some batches, evaluated twenty times."""
    return replace(recipe, batches=max(batches, 1), evaluate=max(1, math.ceil(batches / _EVALUATIONS)))


def batches_in(
    minutes: float, slices: Slices, recipe: Recipe, preparation: Preparation, threads: int | None = None
) -> int:
    """How many batches fit into some minutes on this machine, from the time of a few."""
    state = State.start(recipe)
    times = []
    with Batches(slices, recipe, threads) as batches:
        train_batch(state, batches, recipe, preparation, threads)
        for _ in range(5):
            began = time.monotonic()
            train_batch(state, batches, recipe, preparation, threads)
            times.append(time.monotonic() - began)
    return max(10, int(minutes * 60 / float(np.median(times))))


def draw_curve(log: Path, picture: Path, *, overwrite: bool = False) -> None:
    """Draw loss and score over batches; needs the extra ``pynca[plot]``.

    Raises
    ------
    ModuleNotFoundError
        matplotlib is not installed.
    FileExistsError
        There is a picture that pynca did not draw, and ``overwrite`` is not given.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries = []
    for line in log.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # a process that was killed may have left half a line
            entries.append(json.loads(line))
    batches = [e["batch"] for e in entries]
    judged = [e for e in entries if e["score"] is not None]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(batches, [e["loss"] for e in entries], color="#0072b2")
    left.set(xlabel="batch", ylabel="loss (smoothed)", title="Training")
    right.plot([e["batch"] for e in judged], [e["score"] for e in judged], color="#d55e00")
    if not judged:
        right.text(0.5, 0.5, "not measured", ha="center", va="center", transform=right.transAxes)
        right.set(xticks=[], yticks=[])
    right.set(xlabel="batch", ylabel="hard Dice", title="Validation")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    try:
        with atomic_path(picture, overwrite=overwrite) as beside:
            figure.savefig(beside, dpi=120, metadata={"Software": TEXT})
    finally:
        pyplot.close(figure)
