"""Ways to spoil an artifact, each as one would really happen, for the tests of the verifier.

    python -m tests.verification.sabotages

prints the table of docs/verification.md: which check catches which.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from robust_export.bundle import Bundle
from robust_export.classifier import Logits, Pixels
from robust_export.config import Verify
from robust_export.export.function_body import sparta_nodes
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.verification import verify
from robust_export.verification.report import ArtifactReport
from tests.runtimes.v2_server import serve

QUICK = Verify(attacks=("apgd-ce",), iterations=3, queries=30, ascent=10, samples=48)

Edit = Callable[[onnx.ModelProto], None]
Answer = Callable[[Pixels], Logits]


@dataclass(frozen=True)
class Sabotage:
    """A fault, and the checks (see `caught_by`) that must see it, whatever else does."""

    name: str
    checks: set[str]
    edit: Edit | None = None  # of the file
    wrap: Callable[[Answer], Answer] | None = None  # of what a server answers


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


SABOTAGES = [
    Sabotage("one Sparta bias changed by 0.5", {"gap"}, tensor("gate.bias", first(plus=0.5))),
    Sabotage("k x k taps transposed", {"gap"}, tensor("gate.weight", lambda w: w.swapaxes(2, 3))),
    Sabotage("zero padding made replicate", {"gap"}, replicate_padding),
    Sabotage(
        "two channels of a gate swapped", {"gap"},
        both(tensor("gate.weight", swap_channels), tensor("gate.bias", swap_channels)),
    ),
    Sabotage("sigmoid made hard-sigmoid", {"gap"}, body("Sigmoid", rename("HardSigmoid"))),
    Sabotage("the factor 2 lost in one node", {"gap"}, half_of_one_node),
    Sabotage("ReLU dropped", {"gap"}, body("Relu", rename("Identity"))),
    Sabotage("weights of a convolution scaled by 1 %", {"gap"}, tensor("conv", lambda w: w * 1.01)),
    Sabotage("weights of the gate scaled by 1 %", {"gap"}, tensor("gate.weight", lambda w: w * 1.01)),
    Sabotage("a layer overflows float16", {"finite"}, overflow),
    Sabotage("batch norm folded wrongly in one channel", {"gap"}, tensor("conv", first(1.1))),
    Sabotage(
        "normalisation dropped", {"preprocessing"},
        both(tensor("mean", np.zeros_like), tensor("std", np.ones_like)),
    ),
    Sabotage("labels permuted", {"labels in order"}, permute_labels),
    Sabotage("the previous batch is returned", {"the same input twice"}, wrap=previous_batch),
    Sabotage("right for batches of one only", {"batches of 1 and of 32"}, wrap=first_image_only),
    Sabotage("noise below the tolerance of random inputs", {"flip margin"}, wrap=small_noise),
    Sabotage("a backdoor: a bright stripe", {"worst gap", "flip margin"}, wrap=backdoor(bright_stripe)),
    Sabotage("a backdoor: a chequered stripe", set(), wrap=backdoor(chequered)),
]  # fmt: skip

PREFIXES = {
    "logits differ": "gap", "decisions agree": "agreement", "worst case: logits": "worst gap",
    "worst case: a decision": "flip margin", "clean accuracy dropped": "clean drop",
    "robust accuracy dropped": "robust drop", "logits are finite": "finite",
}  # fmt: skip


@contextmanager
def spoiled(sabotage: Sabotage, bundle: Bundle, folder: Path) -> Iterator[str | Path]:
    """Yield the spoiled artifact: a file, or the address of a server."""
    file = bundle.file("model.onnx")
    if sabotage.edit is not None:
        model = onnx.load(file)
        sabotage.edit(model)
        onnx.save(model, folder / "spoiled.onnx")
        yield folder / "spoiled.onnx"
    else:
        assert sabotage.wrap is not None
        good = OnnxRuntimeClassifier(file, kernel=False)
        with serve(sabotage.wrap(good), plane=good.plane, classes=good.classes) as server:
            yield f"{server}/v2/models/net"


def judge(sabotage: Sabotage, bundle: Bundle, folder: Path, settings: Verify = QUICK) -> ArtifactReport:
    with spoiled(sabotage, bundle, folder) as artifact:
        report = verify(bundle, [artifact], settings=settings, device="cpu", write=False)
    return report.artifacts[0]


def caught_by(item: ArtifactReport) -> set[str]:
    """Return the checks that an artifact failed, in a word or two each."""
    failed = set()
    for reason in item.reasons:
        if "undecided" in reason:
            continue
        if "not finite" in reason:
            failed.add("finite")
            continue
        known = [short for start, short in PREFIXES.items() if reason.startswith(start)]
        failed.add(known[0] if known else reason.split(":")[0])
    return failed


def table(bundle: Bundle) -> str:
    """Return the table of docs/verification.md."""
    lines = ["| sabotage | random inputs | caught by |", "|---|---|---|"]
    for sabotage in SABOTAGES:
        with tempfile.TemporaryDirectory() as folder:
            item = judge(sabotage, bundle, Path(folder))
        random = any("noise" in reason for reason in item.reasons)
        caught = ", ".join(sorted(caught_by(item))) or "**nothing**"
        lines.append(f"| {sabotage.name} | {'seen' if random else 'not seen'} | {caught} |")
    return "\n".join(lines)


if __name__ == "__main__":
    from robust_export.export.bundle import export_bundle
    from robust_export.training import train
    from tests.conftest import tiny_recipe

    with tempfile.TemporaryDirectory() as home:
        tiny = train(tiny_recipe(), Path(home) / "tiny", device="cpu")
        export_bundle(tiny)
        sys.stdout.write(table(Bundle.open(tiny.path)) + "\n")
