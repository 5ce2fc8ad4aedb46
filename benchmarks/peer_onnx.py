"""A step exported to ONNX, channels first and with the mask as an input, in ONNX Runtime and in OpenVINO.

The graph is as kind to them as the formula allows: both perceptions are one convolution, and image channels stay
unchanged because their rows of ``fc1`` are zero.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import pynca
from workload import SOBEL, Workload


def with_onnxruntime(work: Workload, threads: int) -> Callable[[], np.ndarray]:
    """All steps in one graph, which is a little faster here than a loop in Python around one step."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(exported(work, work.steps), options, providers=["CPUExecutionProvider"])
    state, masks = _inputs(work)

    def run() -> np.ndarray:
        return _channels_last(session.run(None, {"state": state, "masks": masks})[0])

    return run


def with_openvino(work: Workload, threads: int) -> Callable[[], np.ndarray]:
    """One step in a loop in Python, which is faster here than all steps in one graph."""
    import openvino

    core = openvino.Core()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.onnx"
        path.write_bytes(exported(work, 1))
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else it computes in bfloat16 where the CPU has it
        }
        request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    start, masks = _inputs(work)

    def run() -> np.ndarray:
        state = start
        for n in range(len(masks)):
            state = request.infer({"state": state, "masks": masks[n : n + 1]}, share_inputs=True)[0]
        return _channels_last(state)

    return run


def exported(work: Workload, steps: int) -> bytes:
    """A graph of so many steps: state (1, C, H, W) and masks (steps, 1, 1, H, W) to the state after them."""
    from onnx import TensorProto, checker, helper, numpy_helper

    rule = work.rule
    height, width, channels = work.state.shape
    constants, nodes = weights_of(rule), []
    constants["axes"] = np.array([0], np.int64)
    if rule.padding == "reflect":
        constants["border"] = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)

    def add(kind: str, inputs: list[str], output: str, **options: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **options))
        return output

    state = "state"
    for n in range(steps):
        if steps == 1:
            fires = add("Squeeze", ["masks", "axes"], "fires0")
        else:
            constants[f"step{n}"] = np.array(n, np.int64)
            fires = add("Gather", ["masks", f"step{n}"], f"fires{n}", axis=0)
        if rule.padding == "reflect":
            padded = add("Pad", [state, "border"], f"padded{n}", mode="reflect")
            seen = add("Conv", [padded, "p.weight", "p.bias"], f"seen{n}", kernel_shape=[3, 3])
        else:
            seen = add("Conv", [state, "p.weight"], f"seen{n}", kernel_shape=[3, 3], pads=[1] * 4, group=channels)
        perceived = add("Concat", [state, seen], f"perceived{n}", axis=1)
        summed = add("Conv", [perceived, "fc0.weight", "fc0.bias"], f"summed{n}", kernel_shape=[1, 1])
        change = add("Conv", [add("Relu", [summed], f"hidden{n}"), "fc1.weight"], f"change{n}", kernel_shape=[1, 1])
        applied = add("Mul", [change, fires], f"applied{n}")
        state = add("Add", [state, applied], f"state{n}" if n < steps - 1 else "after")

    def tensor(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "steps",
        [tensor("state", 1, channels, height, width), tensor("masks", steps, 1, 1, height, width)],
        [tensor("after", 1, channels, height, width)],
        [numpy_helper.from_array(np.asarray(value, order="C"), name) for name, value in constants.items()],
    )
    # versions that runtimes of the last years read, whatever the newest is that this onnx package writes
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    return model.SerializeToString()


def weights_of(rule: pynca.Rule) -> dict[str, np.ndarray]:
    """The rule's weights as convolutions."""
    w, channels = rule.weights, rule.channels
    fc0, fc1 = w["fc0.weight"], w["fc1.weight"].copy()
    fc1[: rule.input_channels] = 0
    found = {"fc0.bias": w["fc0.bias"], "fc1.weight": fc1[:, :, None, None]}
    if rule.perception == "conv":
        found["p.weight"] = np.concatenate([w["p0.weight"], w["p1.weight"]])
        found["p.bias"] = np.concatenate([w["p0.bias"], w["p1.bias"]])
    else:
        # depthwise: both derivatives of a channel follow each other, so fc0 takes its inputs in that order
        found["p.weight"] = np.tile(SOBEL.reshape(2, 1, 3, 3), (channels, 1, 1, 1))
        pairs = fc0[:, channels:].reshape(len(fc0), 2, channels).transpose(0, 2, 1).reshape(len(fc0), 2 * channels)
        fc0 = np.concatenate([fc0[:, :channels], pairs], 1)
    return {**found, "fc0.weight": fc0[:, :, None, None]}


def _inputs(work: Workload) -> tuple[np.ndarray, np.ndarray]:
    state = np.ascontiguousarray(np.moveaxis(work.state, -1, 0)[None])
    return state, work.masks[:, None, None].astype(np.float32)


def _channels_last(state: np.ndarray) -> np.ndarray:
    return np.moveaxis(state[0], 0, -1)
