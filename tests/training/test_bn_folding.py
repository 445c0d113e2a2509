"""The folded copy computes what the model computes in eval mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robust_export.errors import TrainingError
from robust_export.nn.models import create_model
from robust_export.training.bn_folding import FoldedCopy, conv_norm_pairs

BACKBONES = ["resnet10t_sparta", "mobilenetv3_small_050_relu", "regnetx_002_sparta"]


def with_random_norms(name: str) -> nn.Module:
    """Return a model in eval mode with random statistics and weights of batch norm."""
    torch.manual_seed(0)
    model = create_model(name, image_size=32).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert tensor is not None
                    tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return model


@pytest.mark.parametrize("name", BACKBONES)
def test_folded_copy_equals_the_model(name: str) -> None:
    model, pixels = with_random_norms(name), torch.rand(3, 3, 32, 32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = FoldedCopy(model, pixels[:2], fold=True, compiled=False)
    assert len(folded.pairs) == sum(isinstance(child, nn.BatchNorm2d) for child in model.modules())
    assert not any(isinstance(child, nn.BatchNorm2d) for child in folded.modules())
    torch.testing.assert_close(folded(pixels), model(pixels), rtol=1e-3, atol=1e-4)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_copy_weights_follows_changed_weights() -> None:
    model, pixels = with_random_norms(BACKBONES[0]), torch.rand(3, 3, 32, 32)
    folded = FoldedCopy(model, pixels[:2], fold=True, compiled=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.02)
    assert not torch.allclose(folded(pixels), model(pixels), rtol=1e-3)
    folded.copy_weights(model)
    torch.testing.assert_close(folded(pixels), model(pixels), rtol=1e-3, atol=1e-4)


class Branches(nn.Module):
    """A convolution whose output is used by its norm and by an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x)
        return torch.as_tensor(self.norm(features) + features).mean((2, 3))


def test_unfoldable_model_is_refused() -> None:
    pixels = torch.rand(2, 3, 8, 8)
    with pytest.raises(TrainingError, match=r"cannot be folded.*Branches.*train\.fold_norms"):
        FoldedCopy(Branches(), pixels, fold=True, compiled=False)


def test_only_norms_directly_after_a_convolution_fold() -> None:
    norm, first, second = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    pixels = torch.rand(2, 3, 4, 4)
    assert conv_norm_pairs(nn.Sequential(first, norm, second, norm), pixels) == []  # norm is called twice
    after_activation = nn.Sequential(first, nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))
    assert conv_norm_pairs(after_activation, pixels) == [("0", "1")]
