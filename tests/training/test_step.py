"""One optimisation step: against a plain torch loop, its modes, the averaged weights, its state."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from robust_export.attacks.pgd import pgd
from robust_export.nn.sparta import sparta_modules
from robust_export.recipe.schema import Train
from robust_export.training import methods
from tests.training.trainers import STEPS_PER_EPOCH, first_images, make_trainer, take_steps


def plain_loop(model: nn.Module, pixels: Tensor, labels: Tensor, settings: Train, steps: int) -> list[Tensor]:
    """Train the model on one batch with standard training; return the losses."""
    sparta = {id(p) for module in sparta_modules(model).values() for p in module.parameters()}
    groups: list[dict[str, Any]] = [
        {
            "params": [parameter],
            "lr": settings.lr * (5.0 if id(parameter) in sparta else 1.0),
            "weight_decay": settings.weight_decay
            if parameter.ndim > 1 and id(parameter) not in sparta
            else 0.0,
        }
        for parameter in model.parameters()
    ]
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(groups)
        if settings.optimizer == "adamw"
        else torch.optim.SGD(groups, momentum=settings.momentum, nesterov=True)
    )
    peaks, losses = [group["lr"] for group in optimizer.param_groups], []
    for step in range(steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * (1 - step / (settings.epochs * STEPS_PER_EPOCH))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pixels), labels, label_smoothing=settings.label_smoothing)
        loss.backward()
        if settings.clip_grad:
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        optimizer.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize(
    "change",
    [
        {}, {"lr": 0.03, "momentum": 0.5}, {"weight_decay": 0.1},
        {"optimizer": "adamw", "lr": 0.003, "weight_decay": 0.1}, {"clip_grad": 0.1},
        {"label_smoothing": 0.3}, {"channels_last": False},
    ],
    ids=lambda change: "-".join(change) or "defaults",
)  # fmt: skip
def test_step_equals_a_plain_torch_loop(tmp_path: Path, change: dict[str, Any]) -> None:
    trainer = make_trainer(tmp_path, train={"method": "standard", "warmup": 0.0, **change})
    model, (pixels, labels) = copy.deepcopy(trainer.step.model), first_images(trainer)
    expected = plain_loop(model, pixels, labels, trainer.recipe.train, 3)
    losses = [trainer.step(pixels, labels, Generator()) for _ in range(3)]
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    for (name, mine), theirs in zip(trainer.step.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_format(tmp_path: Path, channels_last: bool) -> None:
    trainer = make_trainer(tmp_path, train={"channels_last": channels_last})
    pixels, _ = trainer.step.to_device(first_images(trainer, 8))
    assert pixels.is_contiguous(memory_format=torch.channels_last) is channels_last
    conv = next(m for m in trainer.step.model.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last) is channels_last


def test_attack_in_eval_mode_loss_in_train_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[tuple[str, bool]] = []
    original = pgd

    def spy(model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        modes.append(("attack", model.training))
        return original(model, *args, **kwargs)

    monkeypatch.setattr(methods, "pgd", spy)
    trainer = make_trainer(tmp_path)
    step = trainer.step
    step.optimizer.register_step_pre_hook(lambda *_: modes.append(("step", step.model.training)))
    step(*first_images(trainer, 8), Generator().manual_seed(0))
    assert modes == [("attack", False), ("step", True)]


def test_loss_is_that_of_the_attacked_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs: list[Tensor] = []
    monkeypatch.setattr(methods, "pgd", lambda model, pixels, *_, **__: torch.ones_like(pixels))
    trainer = make_trainer(tmp_path)
    trainer.step.model.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    trainer.step(*first_images(trainer, 8), Generator().manual_seed(0))
    assert len(inputs) == 1
    assert (inputs[0] == 1).all()


def test_zero_attack_steps_do_not_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "pgd", lambda *_, **__: pytest.fail("attacked"))
    trainer = make_trainer(tmp_path, attack={"steps": 0})
    trainer.step(*first_images(trainer, 8), Generator().manual_seed(0))


def test_average_follows_every_step(tmp_path: Path) -> None:
    """ema[t] = 0.8 ema[t-1] + 0.2 weights[t], starting with the weights after the first step."""
    trainer = make_trainer(tmp_path, train={"warmup": 0.0})
    step = trainer.step
    weight = next(iter(sparta_modules(step.model).values())).weight
    average = next(iter(sparta_modules(step.ema.module).values())).weight
    expected: Tensor | None = None
    for i in range(3):
        step(*first_images(trainer, 16), Generator().manual_seed(i))
        now = weight.detach().clone()
        expected = now if expected is None else 0.8 * expected + 0.2 * now
    assert expected is not None
    assert not torch.equal(weight, expected)
    torch.testing.assert_close(average.detach(), expected)


def test_frozen_sparta_stays_zero(tmp_path: Path) -> None:
    trainer, _ = take_steps(tmp_path, sparta={"freeze": True}, train={"lr": 0.1})
    initial = make_trainer(tmp_path).step.model
    for module in sparta_modules(trainer.step.model).values():
        assert (module.weight == 0).all()
        assert (module.bias == 0).all()
    changed = {
        name
        for (name, a), b in zip(trainer.step.model.named_parameters(), initial.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {name for name, p in trainer.step.model.named_parameters() if p.requires_grad}


def test_checkpointing_gives_the_same_weights_and_statistics(tmp_path: Path) -> None:
    plain, expected = take_steps(tmp_path)
    saving, losses = take_steps(tmp_path, train={"grad_checkpointing": True})
    assert saving.step.model.get_submodule("backbone").grad_checkpointing
    assert torch.equal(torch.stack(losses), torch.stack(expected))
    states = (plain.step.model.state_dict(), saving.step.model.state_dict())
    for name in states[0]:
        if "num_batches_tracked" not in name:
            assert torch.equal(states[0][name], states[1][name]), name


def test_restored_step_continues_bit_for_bit(tmp_path: Path) -> None:
    trainer, _ = take_steps(tmp_path, 2)
    state = {part: {k: v.clone() for k, v in named.items()} for part, named in trainer.step.state().items()}
    restored = make_trainer(tmp_path, train={"warmup": 0.0}).step
    restored.load_state(state, {}, steps_done=2)
    for step in (trainer.step, restored):
        step(*first_images(trainer), Generator().manual_seed(5))
    assert restored.learning_rate == trainer.step.learning_rate
    for part, named in trainer.step.state().items():
        for name, tensor in named.items():
            assert torch.equal(restored.state()[part][name], tensor), (part, name)


def test_scale_of_float16_is_restored(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, train={"amp": "fp16"})
    trainer.step.scaler.scale(torch.ones(1))  # creates the scale
    trainer.step.scaler.update(512.0)
    trainer.save()
    resumed = make_trainer(tmp_path, train={"amp": "fp16"})
    resumed.start()
    assert resumed.step.scaler.get_scale() == 512.0
