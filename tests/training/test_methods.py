"""Training methods: their attacks on a linear network with a known worst case, and their losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from robust_export.attacks.pgd import single_step
from robust_export.errors import InvalidValue
from robust_export.recipe.recipe_file import parse
from robust_export.recipe.schema import Recipe, Threat
from robust_export.training import losses
from robust_export.training.methods import find_method
from tests.conftest import Linear, tiny_recipe

EPS = 0.05
METHODS = ["pgd-at", "trades", "mart", "fast", "standard"]


def recipe(method: str, **train: Any) -> Recipe:
    return parse({
        "train": {"method": method, **train}, "threat": {"eps": EPS},
        "attack": {"steps": 10, "step_size": 0.5},
    })  # fmt: skip


class RecordingNetwork(nn.Module):
    """A network that records its inputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.inputs = inner, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x.detach().clone())
        result: Tensor = self.inner(x)
        return result


def loss_and_images(method: str, linear: Linear, **train: Any) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of a batch, and the images on which it was computed."""
    objective = find_method(recipe(method, **train))(
        linear.module, linear.pixels, linear.labels, Generator().manual_seed(0)
    )
    recording = RecordingNetwork(linear.module)
    return objective(recording), recording.inputs


def make_binary(linear: Linear) -> None:
    """Reduce the network to two classes: the worst image becomes x - eps * sign(w_y - w_other)."""
    layer = linear.module[1]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight[2:], layer.bias[2:] = 0, -1e4
    linear.labels.copy_(linear.module(linear.pixels).argmax(1))


def worst_images(linear: Linear) -> Tensor:
    layer = linear.module[1]
    assert isinstance(layer, nn.Linear)
    toward = (layer.weight[linear.labels] - layer.weight[1 - linear.labels]).sign().view_as(linear.pixels)
    return linear.pixels - EPS * toward


@pytest.mark.parametrize("method", ["pgd-at", "mart"])
def test_attack_reaches_the_worst_image(linear: Linear, method: str) -> None:
    make_binary(linear)
    _, images = loss_and_images(method, linear)
    torch.testing.assert_close(images[-1], worst_images(linear))


def test_attack_of_trades_maximises_the_divergence(linear: Linear) -> None:
    """Without labels an image may move to the corner on either side of the boundary."""
    make_binary(linear)
    _, (clean, attacked) = loss_and_images("trades", linear)
    assert torch.equal(clean, linear.pixels)
    corners = torch.stack([worst_images(linear), 2 * clean - worst_images(linear)])
    nearest = (corners - attacked).abs().amax((2, 3, 4)).amin(0)
    assert nearest.max() < 1e-5
    logits = linear.module(clean)
    divergence = losses.kl_divergence(logits, linear.module(attacked))
    assert divergence > 10 * losses.kl_divergence(
        logits, linear.module(clean + 0.001 * (attacked - clean).sign())
    )


def test_loss_of_each_method(linear: Linear) -> None:
    net, labels = linear.module, linear.labels
    for method, beta in {"trades": 6.0, "mart": 5.0}.items():
        loss, (clean, attacked) = loss_and_images(method, linear)
        formula = losses.trades if method == "trades" else losses.mart
        torch.testing.assert_close(loss, formula(net(clean), net(attacked), labels, beta))
        other, _ = loss_and_images(method, linear, beta=1.5)
        torch.testing.assert_close(other, formula(net(clean), net(attacked), labels, 1.5))
    for method in ("pgd-at", "fast", "standard"):
        loss, (images,) = loss_and_images(method, linear, label_smoothing=0.1)
        torch.testing.assert_close(loss, losses.cross_entropy(net(images), labels, 0.1))
        assert torch.equal(images, linear.pixels) == (method == "standard")


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_single_step_attacks_stay_within_their_radius(linear: Linear, norm: Any) -> None:
    threat = Threat(norm, EPS if norm == "Linf" else 0.5)

    def sizes(kind: Any) -> Tensor:
        x = single_step(linear.module, linear.pixels, linear.labels, threat, kind, Generator().manual_seed(0))
        assert 0 <= x.min() <= x.max() <= 1
        delta = (x - linear.pixels).flatten(1)
        return delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)

    assert sizes("rs-fgsm").max() <= threat.eps * (1 + 1e-5)
    unprojected = sizes("n-fgsm")
    assert unprojected.max() <= 3 * threat.eps * (1 + 1e-5)
    assert unprojected.max() > 1.2 * threat.eps  # not projected into the ball


def test_n_fgsm_is_noise_plus_a_step_of_eps(linear: Linear) -> None:
    make_binary(linear)
    x = single_step(
        linear.module, linear.pixels, linear.labels, Threat("Linf", EPS), "n-fgsm", Generator().manual_seed(0)
    )
    noise = x - worst_images(linear)  # without the step
    assert noise.abs().max() <= 2 * EPS * (1 + 1e-5)
    assert noise.abs().max() > 1.9 * EPS
    assert abs(noise.mean().item()) < 0.1 * EPS


@pytest.mark.parametrize("method", METHODS)
def test_randomness_comes_from_the_generator(linear: Linear, method: str) -> None:
    first, again = loss_and_images(method, linear), loss_and_images(method, linear)
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))


@pytest.mark.parametrize("random_start", [True, False])
def test_random_start_of_pgd(linear: Linear, random_start: bool) -> None:
    """One short step does not reach the boundary of the ball: the start remains visible."""
    sections = {
        "attack": {"steps": 1, "step_size": 0.1, "random_start": random_start},
        "threat": {"eps": EPS},
    }
    method = find_method(parse(sections))
    images = []
    for seed in (0, 1):
        network = RecordingNetwork(linear.module)
        method(linear.module, linear.pixels, linear.labels, Generator().manual_seed(seed))(network)
        images += network.inputs
    assert torch.equal(images[0], images[1]) is not random_start


def test_zero_steps_are_standard_training() -> None:
    assert not tiny_recipe(attack={"steps": 0}).adversarial
    assert not tiny_recipe(train={"method": "standard"}).adversarial
    assert tiny_recipe(attack={"steps": 0}, train={"method": "fast"}).adversarial


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"train": {"method": "madry"}}, "method is 'madry'"),
        ({"train": {"method": "pgd-at", "beta": 3.0}}, "beta is 3"),
        ({"train": {"method": "mart"}, "data": {"cutmix": 1.0}}, "data.cutmix is 1.*leave out"),
        ({"train": {"method": "trades"}, "attack": {"steps": 0}}, "attack.steps is 0.*standard"),
        ({"sparta": {"gate": "random"}}, "random.*give load"),
    ],
)
def test_contradictory_recipe_is_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValue, match=f"(?s){words}"):
        tiny_recipe(**sections)
