"""Two processes compute what one computes; what one asks for, or fails at, all do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from robust_export.bundle import Bundle
from robust_export.cli import cli
from robust_export.errors import InvalidValue, TrainingStopped
from robust_export.recipe.recipe_file import to_toml
from robust_export.training.run import train
from robust_export.training.trainer import Run
from robust_export.utils.sharded_rng import ShardedGenerator, sharded_sample
from tests.conftest import OncePerRun, tiny_recipe
from tests.data.sample_data import write_folder
from tests.processes import run_ranks
from tests.training.together import CASES, STOP_AFTER, check, recipe, stop_after

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def images(once_per_run: OncePerRun) -> Path:
    """Return a folder of 40 training and 10 validation images of five classes."""

    def make(path: Path) -> None:
        for split, count in (("train", 10), ("val", 2)):
            write_folder(path / split, dict.fromkeys("abcde", count))

    return once_per_run("images", make)


@pytest.fixture(scope="session")
def folder(images: Path, once_per_run: OncePerRun) -> Path:
    """Return a folder where two ranks have trained every case, in `two`; read only."""

    def make(path: Path) -> None:
        stop, count_steps = stop_after(STOP_AFTER)
        with pytest.raises(TrainingStopped, match="epoch 2, step 1"):
            train(
                recipe(images, "interrupted"), path / "one then two",
                device="cpu", stop=stop, on_step=count_steps,
            )  # fmt: skip
        for ran in run_ranks(2, check, images, path):
            assert ran.returncode == 0, ran.stderr[-3000:]

    return once_per_run("two-ranks", make)


def gap(one: Path, two: Path) -> float:
    """Return the largest difference of a weight."""
    a, b = (load_file(path / "weights.safetensors") for path in (one, two))
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def test_ranks_agree(folder: Path) -> None:
    assert [(folder / f"faults.{rank}").read_text() for rank in (0, 1)] == ["", ""]


@pytest.mark.parametrize("case", [case for case in CASES if case != "batch norm"])
def test_two_ranks_give_the_weights_of_one(images: Path, folder: Path, tmp_path: Path, case: str) -> None:
    alone = train(recipe(images, case), tmp_path / "run", device="cpu")
    assert gap(alone.path, folder / "two" / case) <= 1e-5
    one, two = (
        json.loads((path / "history.json").read_text()) for path in (alone.path, folder / "two" / case)
    )
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
        assert theirs["robust_accuracy"] == mine["robust_accuracy"]


def test_the_manifest_says_how_many_there_were(folder: Path) -> None:
    assert Bundle.open(folder / "two" / "pgd-at").manifest["provenance"]["processes"] == 2


def test_resume_with_another_number_of_ranks(images: Path, folder: Path, tmp_path: Path) -> None:
    asked = recipe(images, "interrupted")
    alone = train(asked, tmp_path / "whole", device="cpu")
    resumed = copytree(folder / "two then one", tmp_path / "two then one")
    train(asked, resumed, device="cpu", resume=True)
    assert gap(alone.path, resumed) <= 1e-5
    assert gap(alone.path, folder / "one then two") <= 1e-5


def test_command_line_under_torchrun_prints_once(images: Path, folder: Path, tmp_path: Path) -> None:
    """The only test that starts torchrun itself."""
    (tmp_path / "recipe.toml").write_text(to_toml(recipe(images, "pgd-at")))
    ran = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "robust_export", "train", "--recipe", str(tmp_path / "recipe.toml"),
            "--out", str(tmp_path / "out"), "--device", "cpu", "--json", "--tracker", "tensorboard",
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert json.loads(ran.stdout)["epochs"] == 2
    assert ran.stderr.count("epoch 1/2") == 1
    assert len(list((tmp_path / "out" / "tracking").rglob("events.out.tfevents.*"))) >= 1
    assert gap(tmp_path / "out", folder / "two" / "pgd-at") == 0


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_parts_make_the_batch(count: int, world: int) -> None:
    images = torch.arange(count)
    parts = [ShardedGenerator(rank, world).for_batch(count) for rank in range(world)]
    assert sum(part.weight for part in parts) == pytest.approx(1)
    theirs = [images[part.shard] for part in parts if part.weight]
    assert sorted(torch.cat(theirs).tolist()) == images.tolist()
    assert all(len(images[part.shard]) >= min(2, count) for part in parts)
    mean = sum(part.weight * images[part.shard].double().mean() for part in parts)
    assert float(mean) == pytest.approx(images.double().mean().item())


def test_an_image_gets_the_same_numbers_from_all() -> None:
    whole = torch.rand(5, 2, generator=torch.Generator().manual_seed(3))
    for rank in range(2):
        part = ShardedGenerator(rank, 2).for_batch(5)
        part.manual_seed(3)
        assert torch.equal(sharded_sample(torch.rand, (len(range(rank, 5, 2)), 2), part), whole[rank::2])
        assert torch.equal(
            torch.rand(1, generator=part), torch.rand(11, generator=torch.Generator().manual_seed(3))[10:]
        )


@pytest.mark.parametrize("command", ["demo", "compare"])
def test_what_is_not_shared_says_so(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    result = CliRunner().invoke(cli, [command])
    assert result.exit_code == 2
    assert f"{command} does not share its work" in result.stderr


def test_synchronised_norms_are_of_gpus(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=r"sync_batchnorm.*cpu.*CUDA"):
        Run(tiny_recipe(train={"sync_batchnorm": True}), tmp_path, torch.device("cpu"))
