"""Faulty artifacts for the tests of the verifier: what was changed, and which checks must fail.

    python -m tests.verification.fault_cases

prints the table of docs/verification.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from robust_export.bundle import Bundle
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.verification.results import ArtifactReport
from robust_export.verification.verify import verify
from tests.runtimes.v2_server import serve
from tests.verification.conftest import FAST, kept_work_items
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

SETTINGS = replace(FAST, max_drop=0.02)  # the default limit; the attacks are those of FAST

DIFFERENCE, WORST_DIFFERENCE = "max abs difference", "worst-case difference"
FLIP_MARGIN, BATCH_SIZES = "flip margin", "batches of 1 and of 32"
REASONS = {
    "logits differ": DIFFERENCE, "predictions agree": "agreement",
    "worst case: logits": WORST_DIFFERENCE, "worst case: a prediction": FLIP_MARGIN,
    "clean accuracy dropped": "clean drop", "robust accuracy dropped": "robust drop",
    "logits are finite": "finite",
}  # fmt: skip
"""Short names of criteria and checks, by the start of the reason."""


@dataclass(frozen=True)
class FaultCase:
    """A fault, and the criteria and checks (see `failures`) that must fail; others may.

    Attributes:
        edit: changes the file.
        wrap: changes the answers of a server.
    """

    name: str
    checks: set[str]
    edit: Edit | None = None
    wrap: Callable[[Answer], Answer] | None = None


FAULT_CASES = [
    FaultCase("one Sparta bias changed by 0.5", {DIFFERENCE}, tensor("gate.bias", first(plus=0.5))),
    FaultCase("gate weights transposed", {DIFFERENCE}, tensor("gate.weight", lambda w: w.swapaxes(2, 3))),
    FaultCase("replicate padding instead of zero padding", {DIFFERENCE}, replicate_padding),
    FaultCase(
        "two channels of a gate swapped", {DIFFERENCE},
        both(tensor("gate.weight", swap_channels), tensor("gate.bias", swap_channels)),
    ),
    FaultCase("hard sigmoid instead of sigmoid", {DIFFERENCE}, body("Sigmoid", rename("HardSigmoid"))),
    FaultCase("factor 2 missing in one node", {DIFFERENCE}, half_of_one_node),
    FaultCase("ReLU removed", {DIFFERENCE}, body("Relu", rename("Identity"))),
    FaultCase("weights of a convolution scaled by 1 %", {DIFFERENCE}, tensor("conv", lambda w: w * 1.01)),
    FaultCase("weights of the gate scaled by 1 %", {DIFFERENCE}, tensor("gate.weight", lambda w: w * 1.01)),
    FaultCase("a layer overflows float16", {"finite"}, overflow),
    FaultCase("batch norm folded wrongly in one channel", {DIFFERENCE}, tensor("conv", first(1.1))),
    FaultCase(
        "normalisation removed", {"preprocessing"},
        both(tensor("mean", np.zeros_like), tensor("std", np.ones_like)),
    ),
    FaultCase("labels permuted", {"labels in order"}, permute_labels),
    FaultCase("previous batch returned", {"the same input twice"}, wrap=previous_batch),
    FaultCase("correct only for batches of one", {BATCH_SIZES}, wrap=first_image_only),
    FaultCase("noise below the limit for random inputs", {FLIP_MARGIN}, wrap=small_noise),
    FaultCase("backdoor: bright stripe", {WORST_DIFFERENCE, FLIP_MARGIN}, wrap=backdoor(bright_stripe)),
    FaultCase("backdoor: alternating stripe", set(), wrap=backdoor(chequered)),
]  # fmt: skip


@contextmanager
def faulty_artifact(case: FaultCase, bundle: Bundle, folder: Path) -> Iterator[str | Path]:
    """Yield the path of the edited file, or the URL of the server."""
    file = bundle.file("model.onnx")
    if case.edit is not None:
        model = onnx.load(file)
        case.edit(model)
        onnx.save(model, folder / "faulty.onnx")
        yield folder / "faulty.onnx"
    else:
        assert case.wrap is not None
        correct = OnnxRuntimeClassifier(file, kernel=False)
        answer = case.wrap(correct)
        with serve(answer, input_shape=correct.input_shape, classes=correct.classes) as server:
            yield f"{server}/v2/models/net"


def verify_case(case: FaultCase, bundle: Bundle, folder: Path) -> ArtifactReport:
    with faulty_artifact(case, bundle, folder) as artifact:
        (report,) = verify(bundle, [artifact], settings=SETTINGS, device="cpu").artifacts
    return report


def failures(item: ArtifactReport) -> set[str]:
    """Return short names of the criteria and checks that failed."""
    failed = set()
    for reason in item.reasons:
        if reason.startswith("undecided"):
            continue
        if "not finite" in reason:
            failed.add("finite")
            continue
        names = [name for start, name in REASONS.items() if reason.startswith(start)]
        failed.add(names[0] if names else reason.split(":")[0])
    return failed


def table(bundle: Bundle) -> str:
    """Return the table of docs/verification.md."""
    lines = ["| fault | random inputs | failed criteria and checks |", "|---|---|---|"]
    with kept_work_items():
        for case in FAULT_CASES:
            with tempfile.TemporaryDirectory() as folder:
                item = verify_case(case, bundle, Path(folder))
            detected = any("noise" in reason for reason in item.reasons)
            failed = ", ".join(sorted(failures(item))) or "**none**"
            lines.append(f"| {case.name} | {'detect it' if detected else 'miss it'} | {failed} |")
    return "\n".join(lines)


if __name__ == "__main__":
    from robust_export.export.bundle_onnx import export_bundle
    from robust_export.training.run import train
    from tests.conftest import tiny_recipe

    with tempfile.TemporaryDirectory() as home:
        tiny = train(tiny_recipe(), Path(home) / "tiny", device="cpu")
        export_bundle(tiny)
        sys.stdout.write(table(Bundle.open(tiny.path)) + "\n")
