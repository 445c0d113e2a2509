"""Measure the speed of adversarial training against a plain loop with torchattacks' PGD, and profile it.

    pip install --no-deps torchattacks         the attack of the plain loop; without it that column is missing
    python benchmarks/training.py              a ResNet-18 with a quarter of the channels, at 32 x 32
    python benchmarks/training.py --width 64 --batch 16 --only plain,off,ours      ResNet-18 itself

Every variant trains the same network on the same images with the same attack. Each runs in its own process,
because malloc's settings are per process, and they take turns, one batch each. "off" is robust-export without
its optimisations, "ours" with those that pay on CPUs; the ones between have one optimisation each ("fused"
has two).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from robust_export.nn import sparta as sparta_module
from robust_export.nn.build import build_model
from robust_export.recipe.recipe_file import parse
from robust_export.recipe.schema import Recipe
from robust_export.training import step as step_module
from robust_export.training.distributed import Processes
from robust_export.training.step import TrainStep
from robust_export.utils.provenance import machine
from robust_export.utils.timing import measure

CPU = torch.device("cpu")
TOTAL_STEPS = 100_000  # of the learning-rate schedule, which has no influence on the speed

OFF = {"channels_last": False, "fold_norms": False}
OURS = {"channels_last": True, "fold_norms": True, "gradient": True, "memory": True, "fused": True}
VARIANTS: dict[str, dict[str, Any]] = {  # section [train]; "gradient": Sparta's own; "memory": kept by malloc
    "plain": {"plain": True, **OFF},
    "off": OFF,
    "channels_last": {**OFF, "channels_last": True},
    "fold_norms": {**OFF, "fold_norms": True},
    "gradient": {**OFF, "gradient": True},
    "memory": {**OFF, "memory": True},
    "fused": {**OFF, "channels_last": True, "fused": True},  # its kernel supports channels_last only
    "ours": OURS,
    "compile": {**OURS, "fused": False, "compile": True},
}

GROUPS = {
    "convolution, forward": ("mkldnn_convolution", "thnn_conv2d", "_slow_conv2d_forward"),
    "convolution, backward": ("convolution_backward",),
    "batch norm": ("native_batch_norm", "native_batch_norm_backward"),
    "relu, sigmoid and products": (
        "mul", "mul_", "sigmoid", "sigmoid_backward", "relu", "clamp_min", "threshold_backward", "add_",
        "add",
    ),
    "Sparta's kernel": ("FusedSparta", "FusedSpartaBackward"),
}  # fmt: skip


def make_recipe(options: argparse.Namespace, settings: dict[str, Any]) -> Recipe:
    width = options.width
    return parse({
        "model": {
            "name": options.model, "image_size": 32,
            "channels": [width, 2 * width, 4 * width, 8 * width], "stem_width": width,
        },
        "attack": {"steps": options.steps},
        "train": {"batch_size": options.batch, "lr": 0.01, **settings},
    })  # fmt: skip


def formula(x: Tensor, preactivation: Tensor) -> Tensor:
    """Return Sparta's product without its own gradient: autograd differentiates each operation."""
    return torch.relu(x) * (2 * torch.sigmoid(preactivation))


def plain_step(recipe: Recipe, network: nn.Module, pixels: Tensor, labels: Tensor) -> Callable[[], object]:
    """Return a function that trains on one batch with a plain loop and torchattacks."""
    import torchattacks  # type: ignore[import-not-found, unused-ignore]

    eps = recipe.threat.eps
    alpha = recipe.attack.step_size * eps
    attack = torchattacks.PGD(network, eps=eps, alpha=alpha, steps=recipe.attack.steps)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    network.train()

    def step() -> None:
        attacked = attack(pixels, labels)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(attacked), labels).backward()
        optimizer.step()

    return step


def make(name: str, options: argparse.Namespace) -> Callable[[], object]:
    """Return a function that trains on one batch as the variant does."""
    torch.set_num_threads(options.threads)
    settings = dict(VARIANTS[name])
    plain, gradient, memory = (settings.pop(key, False) for key in ("plain", "gradient", "memory"))
    if not gradient:
        sparta_module.__dict__["sparta_product"] = formula
    if not memory:
        step_module.__dict__["keep_freed_memory"] = lambda: False
    recipe = make_recipe(options, settings)
    torch.manual_seed(0)
    network = build_model(recipe.model, recipe.sparta, 10)
    pixels, labels = torch.rand(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))
    if plain:
        return plain_step(recipe, network, pixels, labels)
    step = TrainStep(recipe, network, pixels[:2], TOTAL_STEPS, Processes(CPU))
    generator = torch.Generator()
    return lambda: step(*step.to_device((pixels, labels)), generator.manual_seed(0))


def serve(name: str, options: argparse.Namespace) -> None:
    """Train on one batch per line of standard input; print the CPU seconds of each."""
    step = make(name, options)
    for _ in sys.stdin:
        started = time.process_time()
        step()
        print(time.process_time() - started, flush=True)


@contextmanager
def variant_process(
    name: str, options: argparse.Namespace, cpu: dict[str, list[float]]
) -> Iterator[Callable[[], None]]:
    """Start the variant's process; yield a function that lets it train on one batch and appends to `cpu`."""
    command = [sys.executable, __file__, "--serve", name]
    for key in ("model", "width", "batch", "steps", "threads"):
        command += [f"--{key}", str(getattr(options, key))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        requests, replies = process.stdin, process.stdout
        assert requests is not None
        assert replies is not None

        def turn() -> None:
            print(file=requests, flush=True)
            cpu.setdefault(name, []).append(float(replies.readline()))

        try:
            yield turn
        finally:
            requests.close()


def shares(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Return the fraction of CPU time that each group of operations takes, over one batch."""
    step = make(name, options)
    step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    own = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in seen.key_averages()}
    total = sum(own.values())
    fractions = {group: sum(own.get(op, 0) for op in ops) / total for group, ops in GROUPS.items()}
    return {**fractions, "the rest": 1 - sum(fractions.values())}


def compare(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return images per second of each variant, and its speed relative to the first, by wall and CPU time."""
    cpu: dict[str, list[float]] = {}
    with ExitStack() as stack:
        turns = {name: stack.enter_context(variant_process(name, options, cpu)) for name in names}
        timed = measure(turns, rounds=options.rounds, warm_up=0, min_time=0)
    spent = {name: sorted(cpu[name][1:])[len(cpu[name][1:]) // 2] for name in names}
    return {
        name: {
            "images_per_second": options.batch / timed[name].median,
            "times": timed[names[0]].median / timed[name].median,
            "cpu_seconds": spent[name],
            "cpu_times": spent[names[0]] / spent[name],
        }
        for name in names
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="r18_sparta")
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage; ResNet-18 has 64")
    for name, value in (("batch", 32), ("steps", 10), ("threads", 1), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", default="plain,off,channels_last,fold_norms,gradient,memory,fused,ours")
    parser.add_argument("--profile", action="store_true", help="profile `off` and `ours`")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--shares", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options)
        return
    if options.shares:
        print(json.dumps(shares(options.shares, options)))
        return
    names = options.only.split(",")
    if "plain" in names and importlib.util.find_spec("torchattacks") is None:
        print(
            "`plain` is left out, it needs torchattacks: pip install --no-deps torchattacks", file=sys.stderr
        )
        names.remove("plain")
    load = os.getloadavg()
    result: dict[str, Any] = {
        "machine": machine(CPU),
        "load": load,
        "options": vars(options),
        "speed": compare(names, options),
    }
    print(f"| {options.model}, width {options.width}, batch {options.batch}, {options.steps} steps "
          f"| images/s | times {names[0]} | CPU s a batch | times {names[0]} |\n"
          "|---|---:|---:|---:|---:|")  # fmt: skip
    for name, row in result["speed"].items():
        print(f"| `{name}` | {row['images_per_second']:.1f} | {row['times']:.2f} "
              f"| {row['cpu_seconds']:.2f} | {row['cpu_times']:.2f} |")  # fmt: skip
    if options.profile:
        fractions = {}
        for name in ("off", "ours"):
            command = [sys.executable, __file__, *sys.argv[1:], "--shares", name]
            fractions[name] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        print("\n| of the time | `off` | `ours` |\n|---|---:|---:|")
        for group in fractions["off"]:
            print(f"| {group} | {fractions['off'][group]:.0%} | {fractions['ours'][group]:.0%} |")
        result["shares"] = fractions
    print(json.dumps(result), file=sys.stderr)


if __name__ == "__main__":
    main()
