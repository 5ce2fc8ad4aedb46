"""A tape: values that know what they were made from, so that a loss can be differentiated.

A `Node` holds an array and, once `backward` has run, the gradient of the loss with respect to it. Each operation
makes a node and says how its gradient goes back to what it was made from. There are just the operations that a
Med-NCA needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pynca import Rule, _core
from pynca.config import thread_count
from pynca.rule import FloatArray, UInt8Array

from . import losses
from ._gradient import Rollout, reuse_memory, sigmoid_and_softplus

Gradients = dict[str, FloatArray]
Share = FloatArray | Callable[[FloatArray], None] | None  # of a gradient, for what something was made from


class Node:
    """An array on the tape.

    Parameters
    ----------
    value : array
        float32.
    parents : sequence of Node
        What it was made from.
    spread : callable, optional
        Takes the gradient with respect to this value and returns for each parent a new array, or what adds to
        such an array, or None.
    """

    def __init__(
        self,
        value: FloatArray,
        parents: Sequence[Node] = (),
        spread: Callable[[FloatArray], Sequence[Share]] | None = None,
    ) -> None:
        self.value = value
        self.parents = tuple(parents)
        self.gradient: FloatArray | None = None
        self._spread = spread

    def backward(self) -> None:
        """Differentiate this value, which must be a single number, with respect to all it was made from."""
        self.gradient = np.ones_like(self.value)
        for node in reversed(_in_order(self)):
            if node._spread is None or node.gradient is None:
                continue
            for parent, share in zip(node.parents, node._spread(node.gradient), strict=True):
                if callable(share):
                    if parent.gradient is None:
                        parent.gradient = np.zeros(parent.value.shape, np.float32)
                    share(parent.gradient)
                elif share is not None:
                    parent.gradient = share if parent.gradient is None else parent.gradient + share


@contextmanager
def reused_memory() -> Iterator[None]:
    """Until its end the memory of one run serves the next; then it goes back to the system."""
    reuse_memory(True)
    try:
        yield
    finally:
        reuse_memory(False)


class Weights(Node):
    """The weights of a rule as a leaf of the tape; ``gradients`` collects theirs, named and laid out as in ``rule``."""

    def __init__(self, rule: Rule) -> None:
        super().__init__(np.zeros(0, np.float32))
        self.rule = rule
        self.gradients: Gradients = {}

    def collect(self, gradients: Gradients) -> None:
        """Add to the gradients."""
        for name, gradient in gradients.items():
            self.gradients[name] = self.gradients[name] + gradient if name in self.gradients else gradient


def nca(
    weights: Weights,
    state: Node,
    steps: int,
    *,
    image: FloatArray | None = None,
    scale: int = 1,
    masks: UInt8Array | None = None,
    seed: int = 0,
    level: int = 0,
    wanted: UInt8Array | None = None,
    threads: int | None = None,
) -> Node:
    """Run a rule on a state (N, H, W, C); masks are (steps, N, H, W), else drawn with batch member n as sample n.

    Each cell of ``state`` is first repeated ``scale`` x ``scale`` times, and ``image`` (N, H, W) becomes channel 0.
    ``wanted`` (N, H, W) is 1 for the cells of the last state that the loss sees; what cannot reach them any more is
    not computed, and the other cells of the last state mean nothing.
    """
    rule, count = weights.rule, len(state.value)
    if masks is None and count > _core.MAX_SAMPLES:
        raise ValueError(f"the batch has {count} members; the fire mask tells at most {_core.MAX_SAMPLES} apart")
    rollout = Rollout(
        rule.perception,
        rule.padding,
        rule.input_channels,
        rule.fire_rate,
        dict(rule.weights),
        np.ascontiguousarray(state.value),
        None if image is None else np.ascontiguousarray(image),
        scale,
        steps,
        masks,
        seed,
        level,
        np.arange(count, dtype=np.uint32),
        np.zeros(count, np.uint32),
        wanted,
        thread_count(threads),
    )

    def spread(gradient: FloatArray) -> tuple[None, FloatArray]:
        of_weights, of_state = rollout.backward(np.ascontiguousarray(gradient))
        weights.collect(of_weights)
        return None, of_state

    return Node(rollout.final_state, (weights, state), spread)


def crop(state: Node, corners: NDArray[np.integer], size: tuple[int, int]) -> Node:
    """Cut one patch of ``size`` from each member of (N, H, W, C), at its own corner (N, 2)."""
    height, width = size
    places = [(n, slice(y, y + height), slice(x, x + width)) for n, (y, x) in enumerate(corners.tolist())]

    def spread(gradient: FloatArray) -> tuple[Share]:
        def add(whole: FloatArray) -> None:
            for n, place in enumerate(places):
                whole[place] += gradient[n]

        return (add,)

    return Node(np.stack([state.value[place] for place in places]), (state,), spread)


def channels(state: Node, first: int, last: int) -> Node:
    """Take channels first .. last - 1."""
    return _part(state, (..., slice(first, last)))


def select(state: Node, chosen: NDArray[np.bool_]) -> Node:
    """Take the cells (M, C) of (N, H, W, C) that are chosen (N, H, W)."""
    return _part(state, chosen)


def _part(state: Node, index: Any) -> Node:
    """Take what an index that names nothing twice takes."""

    def spread(gradient: FloatArray) -> tuple[Share]:
        def add(whole: FloatArray) -> None:
            whole[index] += gradient

        return (add,)

    return Node(np.ascontiguousarray(state.value[index]), (state,), spread)


def weighted_sum(terms: Sequence[tuple[float, Node]]) -> Node:
    """Add up single numbers, each times its weight."""
    total = sum(weight * float(node.value) for weight, node in terms)
    nodes = [node for _, node in terms]
    return Node(np.array(total, np.float64), nodes, lambda gradient: [gradient * weight for weight, _ in terms])


def sigmoid(logits: Node) -> Node:
    """1 / (1 + e^-x)."""
    p = sigmoid_and_softplus(logits.value.astype(np.float64))[0].astype(np.float32)
    return Node(p, (logits,), lambda gradient: (gradient * p * (1 - p),))


def loss(name: str, logits: Node, target: FloatArray, ends: Sequence[int] | None = None, smooth: float = 1.0) -> Node:
    """One of the losses in `pynca.training.losses`, as its ``evaluate``; ``target`` has the logits' shape."""
    value, slope = losses.evaluate(name, logits.value, target, ends, smooth)
    return Node(np.array(value, np.float64), (logits,), lambda gradient: (slope * np.float32(gradient),))


def _in_order(last: Node) -> list[Node]:
    """Every node that a value depends on, each after all that it depends on."""
    order: list[Node] = []
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(last, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((parent, False) for parent in node.parents)
    return order
