"""Interrupted runs (kill, signals, full disk, stop requests), resumed to bit-identical weights."""

from __future__ import annotations

import errno
import importlib
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from robust_export.bundle import Bundle
from robust_export.cli import cli
from robust_export.cli.process import CommandError, interruptible
from robust_export.errors import BundleError, RobustExportError, TrainingStopped
from robust_export.recipe.recipe_file import merge, to_toml
from robust_export.training import batches, validate
from robust_export.training.run import train
from robust_export.training.validate import Validator
from robust_export.utils.stop import StopRequest
from tests import processes
from tests.training.trainers import QUICK_STEPS, RANDOM, before_step, interrupt, quick_recipe, weights

pytestmark = pytest.mark.usefixtures("foreground")


def train_and_kill_itself(module: str, function: str, nth: int, images: Path, out: Path) -> None:
    """Train the quick recipe, and send SIGKILL to this process at the nth call of a function."""
    owner = importlib.import_module(module)
    original, calls = getattr(owner, function), iter(range(1, 10**6))

    def kill_at_nth(*args: Any, **options: Any) -> Any:
        if next(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(owner, function, kill_at_nth)
    train(quick_recipe(images), out, device="cpu", resume=True)


@pytest.mark.parametrize(
    ("module", "function", "nth"),
    [
        ("os", "replace", 2),  # the first checkpoint's tensors are in a temporary file
        ("os", "replace", 5),  # the second checkpoint's tensors are in place, last.json names the first's
        (batches.__name__, "augment", 8),  # in the middle of the second epoch
        ("os", "replace", 8),  # all epochs are done, weights.safetensors is not yet renamed
        ("os", "replace", 11),  # everything but the manifest
    ],
)
def test_kill_9_then_resume_gives_same_weights(
    images: Path, quick_weights: bytes, tmp_path: Path, module: str, function: str, nth: int
) -> None:
    out = tmp_path / "run"
    killed = processes.run(train_and_kill_itself, module, function, nth, images, out)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with pytest.raises(BundleError, match="unfinished"):
        Bundle.open(out)
    bundle = train(quick_recipe(images), out, device="cpu", resume=True)
    assert weights(bundle.path) == quick_weights
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_command_and_resume_continues(
    images: Path,
    quick_weights: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    recipe = tmp_path / "quick.toml"
    recipe.write_text(to_toml(quick_recipe(images)))
    command = ["train", "--recipe", str(recipe), "--out", str(tmp_path / "run"), "--device", "cpu", "--json"]
    with monkeypatch.context() as patch:
        before_step(patch, 8, partial(os.kill, os.getpid(), number))
        result = CliRunner().invoke(cli, command)
    assert result.exit_code == 1
    assert "stopped as requested" in result.stderr
    assert "epoch 2, step 3" in result.stderr
    assert "--resume" in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    again = CliRunner().invoke(cli, [*command, "--resume"])
    assert again.exit_code == 0, again.output
    assert weights(tmp_path / "run") == quick_weights


@pytest.mark.parametrize("every", [1000, 4])  # the disk is full after an epoch, or within one
def test_full_disk_keeps_the_previous_checkpoint(
    images: Path, quick_weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    recipe = quick_recipe(images, train={"checkpoint_every": every})
    original, calls = os.fsync, iter(range(10**6))

    def full(handle: int) -> None:
        if next(calls) == 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RobustExportError, match=r"(?s)No space left.*previous file.*is unchanged"):
            train(recipe, tmp_path / "run", device="cpu")
    train(recipe, tmp_path / "run", device="cpu", resume=True)
    assert weights(tmp_path / "run") == quick_weights


@pytest.mark.parametrize(("nth", "workers", "saved"), [(5, 1, 3), (10, 0, QUICK_STEPS + 3)])
def test_error_in_a_step_loses_the_steps_since_the_checkpoint(
    images: Path,
    random_weights: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nth: int,
    workers: int,
    saved: int,
) -> None:
    recipe = quick_recipe(images, **merge(RANDOM, {"data": {"workers": workers}}))
    with monkeypatch.context() as patch:
        before_step(patch, nth, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "run", device="cpu")
    steps: list[int] = []
    bundle = train(
        recipe, tmp_path / "run", device="cpu", resume=True, on_step=lambda _, step, __: steps.append(step)
    )
    assert len(steps) == 2 * QUICK_STEPS - saved
    assert weights(bundle.path) == random_weights


def test_stop_request_loses_no_step(images: Path, random_weights: bytes, tmp_path: Path) -> None:
    """Three stops per epoch, within it and at its end."""
    recipe = quick_recipe(images, **merge(RANDOM, {"train": {"checkpoint_every": 0}}))
    stop, steps = StopRequest(), list[tuple[int, int]]()

    def request_stop(epoch: int, step: int, _: int) -> None:
        steps.append((epoch, step))
        stop.requested = step in (1, 3, QUICK_STEPS)

    for _ in range(6):
        with pytest.raises(TrainingStopped):
            train(recipe, tmp_path / "run", device="cpu", resume=True, on_step=request_stop, stop=stop)
        stop.requested = False
    bundle = train(recipe, tmp_path / "run", device="cpu", resume=True, on_step=request_stop, stop=stop)
    assert steps == [(epoch, step) for epoch in (1, 2) for step in range(1, QUICK_STEPS + 1)]
    assert weights(bundle.path) == random_weights


def test_stop_request_during_validation(
    images: Path, quick_weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, stop, original, attacked = quick_recipe(images), StopRequest(), Validator._pgd, list[int]()

    def attack(self: Validator, *args: Any) -> Any:
        stop.requested = True
        attacked.append(len(args[1]))
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(validate, "EVAL_BATCH", 4)
        patch.setattr(Validator, "_pgd", attack)
        with pytest.raises(TrainingStopped, match=r"epoch 1, step 5"):
            train(recipe, tmp_path / "run", device="cpu", stop=stop)
    assert attacked == [4]  # it stopped before the second batch
    assert weights(train(recipe, tmp_path / "run", device="cpu", resume=True).path) == quick_weights


def test_checkpoint_interval_and_workers_may_change(
    images: Path, quick_weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        before_step(patch, 7, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(quick_recipe(images), tmp_path / "run", device="cpu")
    changed = quick_recipe(images, train={"checkpoint_every": 2}, data={"workers": 1})
    assert weights(train(changed, tmp_path / "run", device="cpu", resume=True).path) == quick_weights


def test_second_signal_interrupts_at_once() -> None:
    stop = StopRequest()
    with stop.observing(), interruptible("now", stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    with pytest.raises(CommandError, match="now"), stop.observing(), interruptible("now", stop):
        os.kill(os.getpid(), signal.SIGINT)
    unobserved = StopRequest()  # as before and after training
    with pytest.raises(CommandError, match="now"), interruptible("now", unobserved):
        os.kill(os.getpid(), signal.SIGTERM)
    assert not unobserved.requested
