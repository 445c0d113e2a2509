"""Takes from Triton's image what serving engines and ONNX files does not run.

    python3 strip.py ROOT

What goes: every program but Python's interpreter and Triton's server (so that there is no shell, compiler or
package manager), headers, the packages that install packages, and the backends of other frameworks. Libraries
stay.
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
IN_CUDA = ("bin", "compute-sanitizer", "include", "nvvm", "targets/*/include")
INSTALLERS = ("pip", "setuptools", "wheel")
BACKENDS = {"tensorrt", "onnxruntime"}


def strip(root: Path) -> None:
    for folder in PROGRAMS:
        place = root / folder
        if place.is_symlink() or not place.is_dir():  # /bin is /usr/bin
            continue
        for file in place.iterdir():
            if not re.fullmatch(r"python3(\.\d+)?", file.name):
                remove(file)
    for folder in FOLDERS:
        remove(root / folder)
    for cuda in root.glob("usr/local/cuda-*"):
        for pattern in IN_CUDA:
            for place in cuda.glob(pattern):
                remove(place)
    for library in [*root.glob("usr/lib/python3*"), *root.glob("usr/local/lib/python3*")]:
        for name in INSTALLERS:
            for place in library.glob(f"*-packages/{name}*"):
                remove(place)
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
