"""The command line: a thin layer that reads options, calls the library, and shows what it returns."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from robust_export import __version__
from robust_export.console import Console
from robust_export.errors import RobustExportError

GATE_FAILED = 3  # the exit code of a gate that did not hold


class Failure(click.ClickException):
    """An error of the library, as click shows it: one message, an exit code, no traceback."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


class Commands(click.Group):
    """Turns what the library raises into what the command line prints."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RobustExportError as error:
            raise Failure(str(error), error.exit_code) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="robust-export")
def cli() -> None:
    """Train adversarially robust image classifiers, export them, and prove that they still are.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a verification gate did not hold.
    """


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json to a command."""
    text = "Print one JSON object on standard output, and nothing else there."
    return click.option("--json", "as_json", is_flag=True, help=text)(command)


def model_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --model, which names a bundle, to a command."""
    text = "A bundle under exported/, or the path of one."
    return click.option("--model", required=True, metavar="NAME|PATH", help=text)(command)


@cli.command()
@json_option
def demo(as_json: bool) -> None:
    """Train, export and verify on the built-in digits, in minutes; writes exported/demo."""
    console = Console(as_json)
    with _interruptible("the demo was interrupted; an older exported/demo is untouched"):
        from robust_export.demo import run_demo

        result = run_demo(say=console.say, on_epoch=console.epoch)
    console.show(result.to_dict(), *result.tables())
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.seconds.items())
    console.say(f"bundle {result.bundle} ({stages})")
    _exit_by(result.report.verdict)


@cli.command()
@click.option("--model", metavar="NAME", help="<backbone>_<activation>, such as r18_sparta (the default).")
@click.option(
    "--dataset", metavar="NAME", help="digits (the default), cifar10, cifar100, svhn or folder:PATH."
)
@click.option("--recipe", type=click.Path(path_type=Path), help="A TOML file; see docs/recipes.md.")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle's folder.  [exported/<model>]")
@click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped, or start.")
@click.option("--force", is_flag=True, help="Replace the bundle in --out once the new one is finished.")
@click.option("--epochs", type=int, help="Passes over the training images.")
@click.option("--seed", type=int, help="Of weights, order, augmentation and attacks.")
@click.option("--eps", metavar="E", help='The attack\'s budget, such as 0.031 or "8/255".')
@click.option("--norm", metavar="NORM", help="Of the budget: Linf or L2.")
@click.option("--data-dir", metavar="DIR", help="Where torchvision's data sets lie.")
@click.option("--init", metavar="WHAT", help="random, pretrained (timm's weights) or a .safetensors file.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@json_option
def train(
    model: str | None, dataset: str | None, recipe: Path | None, out: Path | None, resume: bool,
    force: bool, epochs: int | None, seed: int | None, eps: str | None, norm: str | None,
    data_dir: str | None, init: str | None, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Train a network against attacks and write it as a bundle.

    Options go before the recipe file, and the recipe file before the data set's own defaults.
    """
    from robust_export.bundle import HOME

    console = Console(as_json)
    options: dict[str, dict[str, Any]] = {
        "model": {"name": model, "init": init}, "data": {"name": dataset, "dir": data_dir},
        "threat": {"eps": eps, "norm": norm}, "train": {"epochs": epochs, "seed": seed},
    }  # fmt: skip
    asked = _recipe(recipe, options)
    target = out or HOME / asked.model.name
    with _interruptible(f"training was interrupted; go on with the same command and --resume ({target})"):
        from robust_export.training import train as run

        bundle = run(
            asked, target, resume=resume, force=force, device=device,
            on_epoch=console.epoch, on_step=console.step,
        )  # fmt: skip
    facts = bundle.manifest["provenance"]
    console.show({
        "bundle": str(bundle.path), "model": asked.model.name, "epochs": facts["epochs"],
        "best_epoch": facts["best_epoch"], "val": facts["val"],
        "weights_sha256": bundle.manifest["files"]["weights.safetensors"]["sha256"],
    })  # fmt: skip
    console.say(f"wrote {bundle.path}; next: robust-export onnx --model {_name(bundle.path)}")


@cli.command()
@model_option
@click.option(
    "--precision", type=click.Choice(["fp32"]), default="fp32", show_default=True,
    help="Of weights and arithmetic.",
)  # fmt: skip
@click.option("--opset", type=int, help="ONNX opset.  [20]")
@json_option
def onnx(model: str, precision: str, opset: int | None, as_json: bool) -> None:  # noqa: ARG001
    """Write a bundle's network as one self-contained ONNX file with ai.sparta::Sparta nodes."""
    from robust_export.bundle import Bundle
    from robust_export.export.onnx import DEFAULT_OPSET, export_bundle

    console = Console(as_json)
    bundle = Bundle.open(model)
    console.say(f"exporting {bundle.name}")
    path = export_bundle(bundle, DEFAULT_OPSET if opset is None else opset)
    console.show({"file": str(path), **bundle.manifest["files"][path.name]})
    console.say(f"wrote {path}; next: robust-export verify --model {_name(bundle.path)}")


@cli.command()
@model_option
@click.option("--artifact", multiple=True, metavar="FILE", help="Judge this one; may be repeated.  [all]")
@click.option("--eps", metavar="E", help="Of the attacks.  [what the model was trained for]")
@click.option("--norm", metavar="NORM", help="Linf or L2.  [what the model was trained for]")
@click.option("--attacks", metavar="A,B", help="apgd-ce, apgd-dlr, apgd-t, fab-t, square.  [the recipe's]")
@click.option("--max-drop", metavar="D", help="Largest drop of accuracy that passes.  [the recipe's, 0.02]")
@click.option("--samples", type=int, help="Images of the test split.  [the recipe's; 0 takes all]")
@click.option("--seed", type=int, help="Of the attacks.  [the recipe's]")
@click.option("--data-dir", metavar="DIR", help="Where torchvision's data sets lie.  [the recipe's]")
@click.option("--device", default="auto", show_default=True, help="Of the attacks on the source.")
@json_option
def verify(
    model: str, artifact: tuple[str, ...], eps: str | None, norm: str | None, attacks: str | None,
    max_drop: str | None, samples: int | None, seed: int | None, data_dir: str | None, device: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Attack a bundle's network, and judge its artifacts on what the attacks found."""
    from dataclasses import asdict

    from robust_export.bundle import Bundle
    from robust_export.config import Threat, Verify, build

    console = Console(as_json)
    bundle = Bundle.open(model)
    names = tuple(name.strip() for name in attacks.split(",")) if attacks is not None else None
    changes = {"attacks": names, "max_drop": max_drop, "samples": samples, "seed": seed}
    settings = build(Verify, asdict(bundle.recipe().verify) | _given(changes), "verify options")
    threat = build(Threat, asdict(bundle.threat) | _given({"eps": eps, "norm": norm}), "threat")
    with _interruptible("verification was interrupted; nothing was written"):
        from robust_export.verification import verify as run

        report = run(
            bundle, artifact, settings=settings, threat=threat, device=device, data_dir=data_dir,
            say=console.say,
        )  # fmt: skip
    console.show(report.to_dict(), *report.tables())
    for item in report.artifacts:
        for reason in item.reasons:
            console.say(f"{item.verdict.upper()} {item.file}: {reason}")
    console.say(f"wrote {bundle.path / 'verify.json'}")
    _exit_by(report.verdict)


@cli.command()
@click.argument("filter", default="")
@json_option
def models(filter: str, as_json: bool) -> None:
    """List every name that train's --model takes; FILTER keeps those that contain it."""
    from robust_export.models import model_names

    names = [name for name in model_names() if filter in name]
    if not names:
        raise Failure(f"no model's name contains {filter!r}; `robust-export models` lists all")
    if as_json:
        click.echo(json.dumps({"models": names}))
    else:
        click.echo("\n".join(names))


@cli.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine can do, and what is missing for the rest."""
    from dataclasses import asdict

    from rich.table import Table

    from robust_export.doctor import examine

    console = Console(as_json)
    checks = examine()
    table = Table("", "what", "found", "to get it")
    marks = {"ok": "ok", "missing": "MISSING", "optional": "-"}
    for check in checks:
        table.add_row(marks[check.status], check.name, check.found, check.advice)
    ready = all(check.status != "missing" for check in checks)
    console.show({"ready": ready, "checks": [asdict(check) for check in checks]}, table)
    if not ready:
        raise Failure("something that robust-export needs is missing; see the table above")


def _recipe(file: Path | None, options: dict[str, dict[str, Any]]) -> Any:
    """Return the recipe: the data set's defaults, the file over them, the options over both."""
    from robust_export.config import default_recipe, load_recipe, merge, parse

    given = load_recipe(file) if file else {}
    asked = {section: _given(table) for section, table in options.items()}
    data = given.get("data")
    named = data.get("name") if isinstance(data, dict) else None
    name = asked["data"].get("name") or named or "digits"
    layers = merge(default_recipe(str(name)), given, {**asked, "data": {"name": name, **asked["data"]}})
    layers.setdefault("model", {}).setdefault("name", "r18_sparta")
    return parse(layers, str(file) if file else "options")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _name(path: Path) -> str:
    """Return how --model names the bundle in `path`."""
    from robust_export.bundle import HOME

    return path.name if path.parent == HOME else str(path)


def _exit_by(verdict: str) -> None:
    if verdict != "pass":
        sys.exit(GATE_FAILED)


@contextmanager
def _interruptible(message: str) -> Iterator[None]:
    """Turn Ctrl-C, and SIGTERM just so, into a failure with a message."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        raise Failure(message) from None
    finally:
        signal.signal(signal.SIGTERM, before)
