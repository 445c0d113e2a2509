"""What verification costs: its attack on the source beside the package `pyautoattack` alone, and all of it.

    python benchmarks/verification.py exported/demo

prints, for AutoAttack's standard budgets on the bundle's test split:
1. the time of our AutoAttack over that of `pyautoattack` used as its documentation shows: same network,
   images and budgets, in turns in one process; and the robust accuracy of both;
2. what the source's memory layout, and idle threads that do not spin, save of that time;
3. the time of each stage of `verify` with these budgets.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from pyautoattack import AutoAttack

from robust_export.attacks.autoattack import autoattack
from robust_export.bundle import Bundle
from robust_export.data.datasets import load_dataset
from robust_export.nn.load import load
from robust_export.recipe.schema import Verify
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.runtimes.pytorch import PyTorchClassifier
from robust_export.utils.provenance import machine
from robust_export.utils.timing import measure
from robust_export.verification.verify import verify

TURNS = 2


def main(path: str) -> None:
    bundle = Bundle.open(path)
    recipe, threat = bundle.recipe(), bundle.threat
    standard = replace(Verify(), batch_size=recipe.verify.batch_size)
    images = load_dataset(
        recipe.data.name, "test", recipe.model.image_size, recipe.model.in_chans, recipe.data.dir
    )
    pixels, labels = images.batch(range(len(images)))
    theirs = load(bundle)
    ours = PyTorchClassifier(load(bundle).requires_grad_(False)).module

    def package() -> float:
        attack = AutoAttack(theirs, norm=threat.norm, eps=threat.eps, version="standard", seed=0)
        found, _ = attack.run_standard_evaluation(pixels, labels, batch_size=standard.batch_size)
        with torch.no_grad():
            return float((theirs(found).argmax(1) == labels).double().mean())

    def project() -> float:
        return autoattack(ours, pixels, labels, threat, standard).accuracy["square"]

    times: dict[str, list[float]] = {"pyautoattack": [], "robust-export": []}
    accuracy: dict[str, float] = {}
    for turn in range(TURNS):
        order: list[tuple[str, Callable[[], float]]] = [("pyautoattack", package), ("robust-export", project)]
        for name, run in order if turn % 2 == 0 else order[::-1]:
            started = time.perf_counter()
            accuracy[name] = run()
            times[name].append(time.perf_counter() - started)
    facts: Any = machine(torch.device("cpu"))
    print(f"{facts['cpus']} cores, {facts['cpu']}, {facts['threads']} threads; {len(labels)} images")
    for name, value in accuracy.items():
        print(f"{name}: robust accuracy {value:.2%}, {median(times[name]):.1f} s")
    print(
        f"robust-export / pyautoattack: {median(times['robust-export']) / median(times['pyautoattack']):.2f}"
    )
    savings(bundle, pixels[: standard.batch_size])
    report = verify(bundle, settings=standard, device="cpu", write=False)
    for stage, seconds in report.seconds.items():
        print(f"{stage}: {seconds:.1f} s")
    print(f"all: {sum(report.seconds.values()):.1f} s, verdict {report.verdict}")


def savings(bundle: Bundle, pixels: torch.Tensor) -> None:
    """Print what a gradient costs in either memory layout, and a file and the network in turns."""
    plain, source = load(bundle).requires_grad_(False), PyTorchClassifier(load(bundle).requires_grad_(False))

    def gradient(module: torch.nn.Module) -> object:
        x = pixels.clone().requires_grad_()
        return torch.autograd.grad(module(x).sum(), [x])

    def in_turns(spin: bool) -> Callable[[], object]:
        classifier = OnnxRuntimeClassifier(bundle.file("model.onnx"), kernel=False, spin=spin)
        return lambda: (classifier(pixels.numpy()), source(pixels.numpy()))

    layouts = measure({"last": lambda: gradient(source.module), "first": lambda: gradient(plain)})
    print(
        f"a gradient, channels last / channels first: {layouts['last'].median / layouts['first'].median:.2f}"
    )
    turns = {name: measure({name: in_turns(name == "spinning")})[name] for name in ("spinning", "idle")}
    ratio = turns["idle"].median / turns["spinning"].median
    print(f"ONNX Runtime and PyTorch in turns, without spinning / with: {ratio:.2f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "exported/demo")
