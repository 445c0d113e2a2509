"""Removes from Triton's image what serving engines and ONNX files does not need.

    python3 strip.py ROOT

Removed: all programs except the Python interpreter and tritonserver (so there is no shell, compiler or
package manager), headers, pip and the like, and the backends of other frameworks. Libraries stay.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

PROGRAMS = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin", "opt/nvidia")
FOLDERS = (
    "usr/include", "usr/local/include", "usr/lib/gcc", "usr/libexec", "usr/lib/apt", "usr/lib/dpkg",
    "usr/share/doc", "var/cache", "var/lib/apt", "var/lib/dpkg", "root", "workspace",
    "opt/tritonserver/include", "opt/tritonserver/python",
)  # fmt: skip
CUDA_PATTERNS = ("bin", "compute-sanitizer", "include", "nvvm", "targets/*/include")
INSTALLERS = ("pip", "setuptools", "wheel")
BACKENDS = {"tensorrt", "onnxruntime"}


def strip(root: Path) -> None:
    for name in PROGRAMS:
        folder = root / name
        if folder.is_symlink() or not folder.is_dir():  # /bin links to /usr/bin
            continue
        for file in folder.iterdir():
            if not re.fullmatch(r"python3(\.\d+)?", file.name):
                remove(file)
    for name in FOLDERS:
        remove(root / name)
    for cuda in root.glob("usr/local/cuda-*"):
        for pattern in CUDA_PATTERNS:
            for path in cuda.glob(pattern):
                remove(path)
    for library in [*root.glob("usr/lib/python3*"), *root.glob("usr/local/lib/python3*")]:
        for name in INSTALLERS:
            for path in library.glob(f"*-packages/{name}*"):
                remove(path)
    for backend in root.glob("opt/tritonserver/backends/*"):
        if backend.name not in BACKENDS:
            remove(backend)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    strip(Path(sys.argv[1]))
    remove(Path(__file__))
