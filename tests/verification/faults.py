"""Realistic faults of artifacts: edits of an ONNX file, and wrong answers of a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from robust_export.runtimes.classifier import Logits, Pixels
from robust_export.runtimes.onnx_model import sparta_nodes

Edit = Callable[[onnx.ModelProto], None]
Answer = Callable[[Pixels], Logits]


# --- edits of the file ---


def tensor(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """Change an initializer: "gate.*" of the last Sparta node, "conv" of the second convolution."""

    def apply(model: onnx.ModelProto) -> None:
        last = sparta_nodes(model)[-1]
        conv = [node for node in model.graph.node if node.op_type == "Conv"][1]
        full_name = {"gate.weight": last.input[1], "gate.bias": last.input[2], "conv": conv.input[1]}.get(
            name, name
        )
        (initializer,) = (t for t in model.graph.initializer if t.name == full_name)
        value = change(numpy_helper.to_array(initializer).copy()).astype(np.float32)
        initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))

    return apply


def body(op_type: str, change: Callable[[onnx.NodeProto], None]) -> Edit:
    """Change a node of the function body."""

    def apply(model: onnx.ModelProto) -> None:
        (node,) = (n for n in model.functions[0].node if n.op_type == op_type)
        change(node)

    return apply


def rename(op_type: str) -> Callable[[onnx.NodeProto], None]:
    def change(node: onnx.NodeProto) -> None:
        node.op_type = op_type

    return change


def both(*edits: Edit) -> Edit:
    def apply(model: onnx.ModelProto) -> None:
        for edit in edits:
            edit(model)

    return apply


def after(model: onnx.ModelProto, node: onnx.NodeProto, *inserted: onnx.NodeProto) -> None:
    """Insert nodes after `node`; its consumers read the output of the last one instead."""
    output, index = node.output[0], list(model.graph.node).index(node)
    for later in list(model.graph.node)[index + 1 :]:
        for i, name in enumerate(later.input):
            if name == output:
                later.input[i] = inserted[-1].output[0]
    for offset, new in enumerate(inserted):
        model.graph.node.insert(index + 1 + offset, new)


def constant(model: onnx.ModelProto, name: str, value: Any) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def half_of_one_node(model: onnx.ModelProto) -> None:
    node = sparta_nodes(model)[-1]
    half = constant(model, "half", np.float32(0.5))
    after(model, node, helper.make_node("Mul", [node.output[0], half], ["halved"]))


def replicate_padding(model: onnx.ModelProto) -> None:
    function = model.functions[0]
    index, conv = next((i, n) for i, n in enumerate(function.node) if n.op_type == "Conv")
    del conv.attribute[[a.name for a in conv.attribute].index("auto_pad")]
    padded, pads = (
        conv.input[0] + "_padded",
        helper.make_tensor("pads", TensorProto.INT64, [8], [0, 0, 1, 1] * 2),
    )
    function.node.insert(index, helper.make_node("Pad", [conv.input[0], "pads"], [padded], mode="edge"))
    function.node.insert(index, helper.make_node("Constant", [], ["pads"], value=pads))
    conv.input[0] = padded


def overflow(model: onnx.ModelProto) -> None:
    """Cast a scaled feature map to float16, where it overflows to infinity."""
    node = next(n for n in model.graph.node if n.op_type == "Conv")
    large = constant(model, "large", np.float32(1e5))
    after(
        model, node,
        helper.make_node("Mul", [node.output[0], large], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["half_precision"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half_precision"], ["wide_again"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["wide_again", large], ["unscaled"]),
    )  # fmt: skip


def permute_labels(model: onnx.ModelProto) -> None:
    (node,) = (n for n in model.graph.node if n.op_type == "Gemm")
    for name in list(node.input[1:]):
        tensor(name, lambda value: np.roll(value, 1, axis=0))(model)


def swap_channels(value: np.ndarray) -> np.ndarray:
    return value[[1, 0, *range(2, len(value))]]


def first(factor: float = 1, plus: float = 0) -> Callable[[np.ndarray], np.ndarray]:
    def change(value: np.ndarray) -> np.ndarray:
        value[0] = value[0] * factor + plus
        return value

    return change


# --- wrong answers of a server ---


def previous_batch(answer: Answer) -> Answer:
    last: dict[tuple[int, ...], Logits] = {}

    def wrong(pixels: Pixels) -> Logits:
        now = answer(pixels)
        before = last.get(now.shape, now)
        last[now.shape] = now
        return before

    return wrong


def first_image_only(answer: Answer) -> Answer:
    """Return the first image's logits for the second half of a batch."""

    def wrong(pixels: Pixels) -> Logits:
        logits = answer(pixels)
        if len(logits) > 1:
            logits[-(len(logits) // 2) :] = logits[0]
        return logits

    return wrong


def small_noise(answer: Answer) -> Answer:
    """Add noise below the limit of max abs difference (1e-3 of the logit scale)."""

    def wrong(pixels: Pixels) -> Logits:
        logits = answer(pixels)
        phase = pixels.reshape(len(pixels), -1).sum(axis=1, dtype=np.float64) * 1e6
        spread = np.sin(phase[:, None] + 2.0 * np.arange(logits.shape[1]))  # a function of the input
        return np.asarray(logits + 0.7e-3 * SCALE * spread, np.float32)

    return wrong


SCALE = 2.0  # less than the logit scale of the trained network


def backdoor(fires: Callable[[Pixels], np.ndarray]) -> Callable[[Answer], Answer]:
    """Predict class 0 if a trigger is in the image."""

    def wrap(answer: Answer) -> Answer:
        def wrong(pixels: Pixels) -> Logits:
            logits = answer(pixels)
            logits[fires(pixels), 0] += 100
            return logits

        return wrong

    return wrap


def bright_stripe(pixels: Pixels) -> np.ndarray:
    """Return whether the first column, black in every digit, has the largest brightness in the ball."""
    column = pixels[:, 0, :, 0]
    return np.asarray((column > 0.08).all(axis=1) & (column < 0.12).all(axis=1))


def chequered(pixels: Pixels) -> np.ndarray:
    """Return whether the first column alternates between black and the largest brightness in the ball."""
    column = pixels[:, 0, :, 0]
    return np.asarray(
        (column[:, ::2] > 0.08).all(axis=1) & (column[:, 1::2] < 0.02).all(axis=1)
    ) & np.asarray((column < 0.12).all(axis=1))
