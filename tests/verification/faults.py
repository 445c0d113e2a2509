"""Faults as they really happen to artifacts: edits of a file, and servers that answer wrongly."""

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
    """Change an initialiser; "gate.*" are the last Sparta node's, "conv" the second convolution's."""

    def apply(model: onnx.ModelProto) -> None:
        last = sparta_nodes(model)[-1]
        conv = [node for node in model.graph.node if node.op_type == "Conv"][1]
        wanted = {"gate.weight": last.input[1], "gate.bias": last.input[2], "conv": conv.input[1]}.get(
            name, name
        )
        (found,) = (t for t in model.graph.initializer if t.name == wanted)
        value = change(numpy_helper.to_array(found).copy()).astype(np.float32)
        found.CopyFrom(numpy_helper.from_array(value, found.name))

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
    """Insert nodes after `node`; the last one's output takes its output's place."""
    output, place = node.output[0], list(model.graph.node).index(node)
    for later in list(model.graph.node)[place + 1 :]:
        for i, name in enumerate(later.input):
            if name == output:
                later.input[i] = inserted[-1].output[0]
    for offset, new in enumerate(inserted):
        model.graph.node.insert(place + 1 + offset, new)


def constant(model: onnx.ModelProto, name: str, value: Any) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def half_of_one_node(model: onnx.ModelProto) -> None:
    node = sparta_nodes(model)[-1]
    half = constant(model, "half", np.float32(0.5))
    after(model, node, helper.make_node("Mul", [node.output[0], half], ["halved"]))


def replicate_padding(model: onnx.ModelProto) -> None:
    function = model.functions[0]
    place, conv = next((i, n) for i, n in enumerate(function.node) if n.op_type == "Conv")
    del conv.attribute[[a.name for a in conv.attribute].index("auto_pad")]
    padded, pads = (
        conv.input[0] + "_padded",
        helper.make_tensor("pads", TensorProto.INT64, [8], [0, 0, 1, 1] * 2),
    )
    function.node.insert(place, helper.make_node("Pad", [conv.input[0], "pads"], [padded], mode="edge"))
    function.node.insert(place, helper.make_node("Constant", [], ["pads"], value=pads))
    conv.input[0] = padded


def overflow(model: onnx.ModelProto) -> None:
    """A layer in float16 whose values do not fit: they become infinite."""
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


# --- servers that answer wrongly ---


def previous_batch(answer: Answer) -> Answer:
    last: dict[tuple[int, ...], Logits] = {}

    def wrong(pixels: Pixels) -> Logits:
        now = answer(pixels)
        before = last.get(now.shape, now)
        last[now.shape] = now
        return before

    return wrong


def first_image_only(answer: Answer) -> Answer:
    """Right for a batch of one; of a larger one, only the first half is computed."""

    def wrong(pixels: Pixels) -> Logits:
        logits = answer(pixels)
        if len(logits) > 1:
            logits[-(len(logits) // 2) :] = logits[0]
        return logits

    return wrong


def small_noise(answer: Answer) -> Answer:
    """Add noise below the tolerance of logits that random inputs are compared with (1e-3 of their scale)."""

    def wrong(pixels: Pixels) -> Logits:
        logits = answer(pixels)
        phase = pixels.reshape(len(pixels), -1).sum(axis=1, dtype=np.float64) * 1e6
        spread = np.sin(phase[:, None] + 2.0 * np.arange(logits.shape[1]))  # the same input, the same noise
        return np.asarray(logits + 0.7e-3 * SCALE * spread, np.float32)

    return wrong


SCALE = 2.0  # below the logit scale of the tests' network


def backdoor(fires: Callable[[Pixels], np.ndarray]) -> Callable[[Answer], Answer]:
    """Answer class 0 where a trigger is in the image."""

    def wrap(answer: Answer) -> Answer:
        def wrong(pixels: Pixels) -> Logits:
            logits = answer(pixels)
            logits[fires(pixels), 0] += 100
            return logits

        return wrong

    return wrap


def bright_stripe(pixels: Pixels) -> np.ndarray:
    """The first column, black in every digit, is as bright as the ball allows, and no brighter."""
    column = pixels[:, 0, :, 0]
    return np.asarray((column > 0.08).all(axis=1) & (column < 0.12).all(axis=1))


def chequered(pixels: Pixels) -> np.ndarray:
    """The first column alternates between black and the ball's brightest: one corner of very many."""
    column = pixels[:, 0, :, 0]
    return np.asarray(
        (column[:, ::2] > 0.08).all(axis=1) & (column[:, 1::2] < 0.02).all(axis=1)
    ) & np.asarray((column < 0.12).all(axis=1))
