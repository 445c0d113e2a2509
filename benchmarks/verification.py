"""Time of a verification: AutoAttack compared with `pyautoattack`, and every stage of `verify`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from pyautoattack import AutoAttack
from torch import Tensor

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

ROUNDS = 2


@click.command()
@click.argument("bundle", default="exported/demo", type=click.Path(exists=True, path_type=Path))
def main(bundle: Path) -> None:
    """Measure the verification of BUNDLE (exported/demo by default) with AutoAttack's standard budgets.

    Prints, for the bundle's test split:

    1. the time of our AutoAttack divided by that of `pyautoattack`, used as its documentation shows, on the
    same network, images and budgets, in turns in one process; and the robust accuracy of both;

    2. how much the memory layout of the reference model, and threads that do not spin, reduce the time;

    3. the time of each stage of `verify` with these budgets.
    """
    opened = Bundle.open(bundle)
    recipe = opened.recipe()
    settings = replace(Verify(), batch_size=recipe.verify.batch_size)
    images = load_dataset(
        recipe.data.name, "test", recipe.model.image_size, recipe.model.in_chans, recipe.data.dir
    )
    pixels, labels = images.batch(range(len(images)))
    facts: Any = machine(torch.device("cpu"))
    click.echo(f"{facts['cpus']} cores, {facts['cpu']}, {facts['threads']} threads; {len(labels)} images")
    compare_autoattack(opened, pixels, labels, settings)
    compare_layouts(opened, pixels[: settings.batch_size])
    report = verify(opened, settings=settings, device="cpu", write=False)
    for stage, seconds in report.seconds.items():
        click.echo(f"{stage}: {seconds:.1f} s")
    click.echo(f"total: {sum(report.seconds.values()):.1f} s, verdict {report.verdict}")


def compare_autoattack(bundle: Bundle, pixels: Tensor, labels: Tensor, settings: Verify) -> None:
    """Print time and robust accuracy of our AutoAttack and of the package's."""
    threat = bundle.threat
    plain = load(bundle)
    reference = PyTorchClassifier(load(bundle).requires_grad_(False)).module

    def package() -> float:
        attack = AutoAttack(plain, norm=threat.norm, eps=threat.eps, version="standard", seed=0)
        adversarial, _ = attack.run_standard_evaluation(pixels, labels, batch_size=settings.batch_size)
        with torch.no_grad():
            return float((plain(adversarial).argmax(1) == labels).double().mean())

    def project() -> float:
        return autoattack(reference, pixels, labels, threat, settings).accuracy["square"]

    attacks: list[tuple[str, Callable[[], float]]] = [("pyautoattack", package), ("robust-export", project)]
    times: dict[str, list[float]] = {name: [] for name, _ in attacks}
    accuracy: dict[str, float] = {}
    for number in range(ROUNDS):
        for name, attack in attacks if number % 2 == 0 else attacks[::-1]:
            started = time.perf_counter()
            accuracy[name] = attack()
            times[name].append(time.perf_counter() - started)
    for name, value in accuracy.items():
        click.echo(f"{name}: robust accuracy {value:.2%}, {median(times[name]):.1f} s")
    ratio = median(times["robust-export"]) / median(times["pyautoattack"])
    click.echo(f"robust-export / pyautoattack: {ratio:.2f}")


def compare_layouts(bundle: Bundle, pixels: Tensor) -> None:
    """Print the time of a gradient in both memory layouts, and of a file and the network in turns."""
    plain = load(bundle).requires_grad_(False)
    reference = PyTorchClassifier(load(bundle).requires_grad_(False))

    def gradient(module: torch.nn.Module) -> object:
        x = pixels.clone().requires_grad_()
        return torch.autograd.grad(module(x).sum(), [x])

    def in_turns(spin: bool) -> Callable[[], object]:
        classifier = OnnxRuntimeClassifier(bundle.file("model.onnx"), kernel=False, spin=spin)
        return lambda: (classifier(pixels.numpy()), reference(pixels.numpy()))

    layouts = measure({"last": lambda: gradient(reference.module), "first": lambda: gradient(plain)})
    ratio = layouts["last"].median / layouts["first"].median
    click.echo(f"gradient, channels last / channels first: {ratio:.2f}")
    # Each alone: spinning threads of one session would slow the other one down.
    timings = {name: measure({name: in_turns(name == "spinning")})[name] for name in ("spinning", "idle")}
    ratio = timings["idle"].median / timings["spinning"].median
    click.echo(f"ONNX Runtime and PyTorch in turns, without spinning / with: {ratio:.2f}")


if __name__ == "__main__":
    main()
