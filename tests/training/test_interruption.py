"""Whatever interrupts a run, nothing is lost, and it ends in the same bytes."""

from __future__ import annotations

import errno
import importlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from robust_export.bundle import Bundle
from robust_export.cli import cli
from robust_export.cli.process import CommandError, interruptible
from robust_export.errors import BundleError, RobustExportError, TrainingStopped
from robust_export.recipe.recipe_file import to_toml
from robust_export.training import step as learner
from robust_export.training import trainer
from robust_export.training.run import train
from robust_export.training.trainer import Run
from robust_export.utils.stop import StopRequest
from tests import processes
from tests.conftest import tiny_recipe

pytestmark = pytest.mark.usefixtures("foreground")


def train_and_kill_itself(module: str, function: str, nth: int, out: Path) -> None:
    """Train TINY, and send SIGKILL to this process at the nth call of a function."""
    owner = importlib.import_module(module)
    original, calls = getattr(owner, function), iter(range(1, 10**6))

    def kill_at_nth(*args: Any, **options: Any) -> Any:
        if next(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(owner, function, kill_at_nth)
    train(tiny_recipe(), out, device="cpu", resume=True)


def weights(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("module", "function", "nth"),
    [
        ("os", "replace", 2),  # the first checkpoint's tensors are on disk, its pointer is not
        (trainer.__name__, "augment", 15),  # in the middle of the second epoch
        ("os", "replace", 10),  # all epochs are done, weights.safetensors is not yet in its place
        ("os", "replace", 13),  # everything but the manifest
    ],
)
def test_kill_9_then_resume_gives_same_weights(
    trained: Path, tmp_path: Path, module: str, function: str, nth: int
) -> None:
    out = tmp_path / "run"
    killed = processes.run(train_and_kill_itself, module, function, nth, out)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with pytest.raises(BundleError, match="unfinished"):
        Bundle.open(out)
    bundle = train(tiny_recipe(), out, device="cpu", resume=True)
    assert weights(bundle.path) == weights(trained)
    assert not list(out.rglob("*.tmp"))


def recipe_file(folder: Path) -> str:
    path = folder / "tiny.toml"
    path.write_text(to_toml(tiny_recipe()))
    return str(path)


def interrupt(monkeypatch: pytest.MonkeyPatch, nth: int, how: signal.Signals) -> None:
    """Send a signal to this very process at the nth training step."""
    original, steps = Run._step, iter(range(1, 10**6))

    def step(self: Run, *args: Any) -> Any:
        if next(steps) == nth:
            os.kill(os.getpid(), how)
        return original(self, *args)

    monkeypatch.setattr(Run, "_step", step)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_cleanly_and_can_be_resumed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    command = ["train", "--recipe", recipe_file(tmp_path), "--out", str(tmp_path / "run")]
    command += ["--device", "cpu", "--json"]
    with monkeypatch.context() as patch:
        interrupt(patch, 17, how)
        result = CliRunner().invoke(cli, command)
    assert result.exit_code == 1
    assert "lost nothing" in result.stderr
    assert "epoch 2, step 6" in result.stderr
    assert "--resume" in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    again = CliRunner().invoke(cli, [*command, "--resume"])
    assert again.exit_code == 0, again.output
    assert weights(tmp_path / "run") == weights(trained)


@pytest.mark.parametrize("every", [1000, 4])  # the disk is full after an epoch, or within one
def test_a_full_disk_keeps_the_checkpoint_before(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    recipe = tiny_recipe(train={"checkpoint_every": every})
    original, calls = os.fsync, iter(range(10**6))

    def full(handle: int) -> None:
        if next(calls) == 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RobustExportError, match=r"(?s)No space left.*previous file.*is unchanged"):
            train(recipe, tmp_path / "run", device="cpu")
    assert train(recipe, tmp_path / "run", device="cpu", resume=True)
    assert weights(tmp_path / "run") == weights(trained)


# --- within an epoch ---

RICH: dict[str, Any] = {
    "model": {"drop_rate": 0.2},
    "data": {"flip": True, "randaugment": 1, "cutmix": 1.0},
    "train": {"checkpoint_every": 3, "epochs": 2, "method": "trades", "awp": 0.005},
}


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run that uses every source of randomness there is, uninterrupted."""
    return weights(train(tiny_recipe(**RICH), tmp_path_factory.mktemp("rich") / "run", device="cpu").path)


@pytest.mark.parametrize(("nth", "workers"), [(5, 1), (18, 0)])
def test_an_error_in_a_step_costs_at_most_checkpoint_every(
    rich: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int, workers: int
) -> None:
    """`nth` counts steps: 11 are an epoch; what breaks off at 5 goes on after 3, at 18 after 11 + 6."""
    recipe, done = tiny_recipe(**{**RICH, "data": {**RICH["data"], "workers": workers}}), 0

    def count(epoch: int, step: int, steps: int) -> None:
        nonlocal done
        done += 1

    with monkeypatch.context() as patch:
        original, steps = Run._step, iter(range(1, 10**6))

        def step(self: Run, *args: Any) -> Any:
            if next(steps) == nth:
                raise KeyboardInterrupt
            return original(self, *args)

        patch.setattr(Run, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "run", device="cpu")
    bundle = train(recipe, tmp_path / "run", device="cpu", resume=True, on_step=count)
    assert 22 - done == {5: 3, 18: 17}[nth]
    assert weights(bundle.path) == rich


def test_what_is_asked_to_stop_loses_no_step(rich: bytes, tmp_path: Path) -> None:
    """Stopped after every few steps, and during validation, it still ends in the same bytes."""
    recipe, stops = tiny_recipe(**{**RICH, "train": {**RICH["train"], "checkpoint_every": 0}}), 0
    steps_seen: list[tuple[int, int]] = []
    while True:
        stop = StopRequest()

        def ask(epoch: int, step: int, steps: int, stop: StopRequest = stop) -> None:
            steps_seen.append((epoch, step))
            stop.requested = step in (2, 7, 11)

        try:
            bundle = train(recipe, tmp_path / "run", device="cpu", resume=True, on_step=ask, stop=stop)
            break
        except TrainingStopped:
            stops += 1
    assert stops == 6
    assert steps_seen == [(epoch, step) for epoch in (1, 2) for step in range(1, 12)]
    assert weights(bundle.path) == rich


def test_validation_hears_a_request_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path
) -> None:
    stop, original = StopRequest(), Run._attack

    def attack(self: Run, *args: Any) -> Any:
        stop.requested = True
        return original(self, *args)

    monkeypatch.setattr(learner, "EVAL_BATCH", 16)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_attack", attack)
        with pytest.raises(TrainingStopped, match=r"epoch 1, step 11"):
            train(tiny_recipe(), tmp_path / "run", device="cpu", stop=stop)
    monkeypatch.undo()
    assert weights(train(tiny_recipe(), tmp_path / "run", device="cpu", resume=True).path) == weights(trained)


def test_how_often_to_save_may_change(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 7, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_recipe(), tmp_path / "run", device="cpu")
    other = tiny_recipe(train={"checkpoint_every": 2}, data={"workers": 1})
    assert weights(train(other, tmp_path / "run", device="cpu", resume=True).path) == weights(trained)


def test_the_second_signal_interrupts_at_once() -> None:
    stop = StopRequest()
    with stop.observing(), interruptible("now", stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    with pytest.raises(CommandError, match="now"), stop.observing(), interruptible("now", stop):
        os.kill(os.getpid(), signal.SIGINT)
    deaf = StopRequest()  # before and after training, nobody would hear it
    with pytest.raises(CommandError, match="now"), interruptible("now", deaf):
        os.kill(os.getpid(), signal.SIGTERM)
    assert not deaf.requested
