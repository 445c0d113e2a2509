"""Prepare a model for training: fused kernel, gradient checkpointing, synchronised batch norm."""

from __future__ import annotations

import timm.layers
from torch import nn

from robust_export.errors import InvalidValue, UnsupportedModel, reason
from robust_export.recipe.schema import Train
from robust_export.training.distributed import Processes
from robust_export.training.fused_sparta import fuse_sparta
from robust_export.utils.sharded_rng import MIN_SHARD


def prepare_model(model: nn.Module, settings: Train, processes: Processes) -> nn.Module:
    """Return the model as `fused`, `grad_checkpointing` and `sync_batchnorm` of the section [train] require.

    Raises:
        InvalidValue: for `fused` without the kernel, or `sync_batchnorm` without GPUs.
        UnsupportedModel: for a backbone without gradient checkpointing.
    """
    if settings.fused:
        fuse_sparta(model)
    if settings.grad_checkpointing:
        _enable_grad_checkpointing(model)
    if settings.sync_batchnorm and processes.device.type != "cuda":
        raise InvalidValue(
            f"train.sync_batchnorm is true on {processes.device.type}, but torch supports it on CUDA only: "
            "train on GPUs, set it to false, or choose a backbone without batch norm"
        )
    if settings.sync_batchnorm and processes.distributed:
        synchronised: nn.Module = timm.layers.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call, attr-defined]
        return synchronised
    return model


def check_last_batch(count: int, settings: Train, processes: Processes) -> None:
    """Raise InvalidValue if synchronised batch norm would count images of the last batch twice."""
    if settings.sync_batchnorm and processes.distributed and count < MIN_SHARD * processes.world:
        raise InvalidValue(
            f"the last batch has {count} images; train.sync_batchnorm needs at least {MIN_SHARD} for each of "
            f"{processes.world} processes: choose another train.batch_size than {settings.batch_size}"
        )


def _enable_grad_checkpointing(model: nn.Module) -> None:
    backbone = model.get_submodule("backbone")
    try:
        backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:
        raise UnsupportedModel(
            f"{type(backbone).__name__} has no gradient checkpointing ({reason(error)}): set "
            "train.grad_checkpointing to false"
        ) from None
