"""What a recipe's [train] section asks of the network itself, before it learns."""

from __future__ import annotations

import timm.layers
from torch import nn

from robust_export.errors import InvalidValue, UnsupportedModel, reason
from robust_export.recipe.schema import Train
from robust_export.training.distributed import Processes
from robust_export.training.fused_sparta import fuse_sparta
from robust_export.utils.sharded_rng import MIN_SHARD


def prepared(network: nn.Module, settings: Train, processes: Processes) -> nn.Module:
    """Return the network with the kernel, checkpointing, and norms that see the whole batch, as asked.

    Raises:
        InvalidValue: for fused without the kernel.
        InvalidValue: for sync_batchnorm without GPUs.
        UnsupportedModel: for a backbone that cannot compute its planes again.
    """
    if settings.fused:
        fuse_sparta(network)
    if settings.grad_checkpointing:
        _keep_less(network)
    if settings.sync_batchnorm and processes.device.type != "cuda":
        raise InvalidValue(
            f"train.sync_batchnorm is true on {processes.device.type}, and torch has it on CUDA only: "
            "train on GPUs, leave it out, or take a backbone without batch norm"
        )
    if settings.sync_batchnorm and processes.several:
        synchronised: nn.Module = timm.layers.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call, attr-defined]
        return synchronised
    return network


def check_last_batch(count: int, settings: Train, processes: Processes) -> None:
    """Raise InvalidValue if synchronised norms would count images of the last batch twice."""
    if settings.sync_batchnorm and processes.several and count < MIN_SHARD * processes.world:
        raise InvalidValue(
            f"the last batch has {count} images, less than {MIN_SHARD} for each of {processes.world} processes, "
            f"which train.sync_batchnorm needs: give another train.batch_size than {settings.batch_size}"
        )


def _keep_less(network: nn.Module) -> None:
    backbone = network.get_submodule("backbone")
    try:
        backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:
        raise UnsupportedModel(
            f"{type(backbone).__name__} has no gradient checkpointing ({reason(error)}): leave out "
            "train.grad_checkpointing"
        ) from None
