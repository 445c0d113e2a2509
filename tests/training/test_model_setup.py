"""What `grad_checkpointing` and `sync_batchnorm` refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from robust_export.errors import InvalidValue, UnsupportedModel
from robust_export.nn.models import create_model
from robust_export.recipe.schema import Train
from robust_export.training.distributed import Processes
from robust_export.training.model_setup import check_last_batch, prepare_model
from tests.training.trainers import CPU, make_trainer


def test_backbone_without_checkpointing_is_refused() -> None:
    model = create_model("dla34_sparta")
    with pytest.raises(UnsupportedModel, match=r"gradient checkpointing.*train\.grad_checkpointing"):
        prepare_model(model, Train(grad_checkpointing=True), Processes(CPU))


def test_synchronised_norms_need_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=r"sync_batchnorm.*cpu.*CUDA"):
        make_trainer(tmp_path, train={"sync_batchnorm": True})


def test_synchronised_norms_need_two_images_per_process() -> None:
    processes = Processes(CPU)
    settings = Train(sync_batchnorm=True, batch_size=37)
    check_last_batch(3, settings, processes)
    processes.world = 2
    check_last_batch(4, settings, processes)
    with pytest.raises(InvalidValue, match=r"last batch has 3 images.*at least 2.*train\.batch_size than 37"):
        check_last_batch(3, settings, processes)


def test_defaults_change_nothing() -> None:
    model = nn.Linear(2, 2)
    assert prepare_model(model, Train(), Processes(CPU)) is model
