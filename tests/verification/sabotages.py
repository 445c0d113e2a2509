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

import numpy as np
import onnx

from robust_export.bundle import Bundle
from robust_export.recipe.schema import Verify
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.verification.results import ArtifactReport
from robust_export.verification.verify import verify
from tests.runtimes.v2_server import serve
from tests.verification.faults import (
    Answer,
    Edit,
    backdoor,
    body,
    both,
    bright_stripe,
    chequered,
    first,
    first_image_only,
    half_of_one_node,
    overflow,
    permute_labels,
    previous_batch,
    rename,
    replicate_padding,
    small_noise,
    swap_channels,
    tensor,
)

QUICK = Verify(attacks=("apgd-ce",), iterations=3, queries=30, ascent=10, samples=48)


@dataclass(frozen=True)
class Sabotage:
    """A fault, and the checks (see `caught_by`) that must see it, whatever else does."""

    name: str
    checks: set[str]
    edit: Edit | None = None  # of the file
    wrap: Callable[[Answer], Answer] | None = None  # of what a server answers


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
    from robust_export.export.bundle_onnx import export_bundle
    from robust_export.training.run import train
    from tests.conftest import tiny_recipe

    with tempfile.TemporaryDirectory() as home:
        tiny = train(tiny_recipe(), Path(home) / "tiny", device="cpu")
        export_bundle(tiny)
        sys.stdout.write(table(Bundle.open(tiny.path)) + "\n")
