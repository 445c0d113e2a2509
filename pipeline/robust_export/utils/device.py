"""Choose the device that PyTorch computes on."""

from __future__ import annotations

import torch

from robust_export.errors import InvalidValue, unknown


def find_device(name: str = "auto") -> torch.device:
    """Return the torch device "cpu", "cuda", "cuda:N" or "mps"; "auto" is "cuda" if available, else "cpu".

    Raises:
        UnknownName: for an unknown name.
        InvalidValue: for a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = name.partition(":")[0]
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ["auto", *available]) from None
    if kind not in available:
        raise unknown("device", name, ["auto", *available])
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not available[kind] or (device.index or 0) >= count:
        raise InvalidValue(
            f"this machine has no device {name!r}; it has "
            f"{', '.join(kind for kind, present in available.items() if present)}. "
            "`robust-export doctor` says what is missing."
        )
    return device
