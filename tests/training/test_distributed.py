"""Two processes compute what one computes; a stop request or an error of one ends both."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from robust_export.bundle import Bundle
from robust_export.cli import cli
from robust_export.errors import TrainingStopped
from robust_export.recipe.recipe_file import to_toml
from robust_export.training.run import train
from robust_export.utils.sharded_rng import ShardedGenerator, sharded_sample
from tests import processes
from tests.data.sample_data import write_folder
from tests.training.ranks import CASES, STOP_AFTER, make_recipe, run_checks, stop_after

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which two ranks have run all checks; `two` has the bundle of each case."""
    path = tmp_path_factory.mktemp("ranks")
    for split, count in (("train", 10), ("val", 2)):
        write_folder(path / "images" / split, dict.fromkeys("abcde", count))
    stop, count_steps = stop_after(STOP_AFTER)
    recipe = make_recipe(path, "interrupted")
    with pytest.raises(TrainingStopped, match="epoch 2, step 1"):
        train(recipe, path / "one then two", device="cpu", stop=stop, on_step=count_steps)
    for result in processes.run_ranks(2, run_checks, path):
        assert result.returncode == 0, result.stderr[-3000:]
    return path


def max_abs_difference(one: Path, two: Path) -> float:
    """Return the largest difference of a weight between two bundles."""
    a, b = (load_file(path / "weights.safetensors") for path in (one, two))
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def test_ranks_found_no_fault(folder: Path) -> None:
    assert [(folder / f"faults.{rank}").read_text() for rank in (0, 1)] == ["", ""]


@pytest.mark.parametrize("case", [case for case in CASES if case != "batch norm"])
def test_two_processes_train_the_weights_of_one(folder: Path, case: str) -> None:
    alone = train(make_recipe(folder, case), folder / "one" / case, device="cpu")
    assert max_abs_difference(alone.path, folder / "two" / case) <= 1e-5
    one, two = (json.loads((folder / n / case / "history.json").read_text()) for n in ("one", "two"))
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
        assert theirs["robust_accuracy"] == mine["robust_accuracy"]


def test_manifest_has_the_number_of_processes(folder: Path) -> None:
    assert Bundle.open(folder / "two" / "pgd-at").manifest["provenance"]["processes"] == 2


def test_resume_with_another_number_of_processes(folder: Path) -> None:
    recipe = make_recipe(folder, "interrupted")
    alone = train(recipe, folder / "one" / "whole", device="cpu")
    train(recipe, folder / "two then one", device="cpu", resume=True)
    assert max_abs_difference(alone.path, folder / "two then one") <= 1e-5
    assert max_abs_difference(alone.path, folder / "one then two") <= 1e-5


def test_torchrun_prints_and_logs_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(to_toml(make_recipe(folder, "pgd-at")))
    ran = subprocess.run(
        [
            *TORCHRUN, "-m", "robust_export", "train", "--recipe", str(tmp_path / "recipe.toml"),
            "--out", str(tmp_path / "out"), "--device", "cpu", "--json", "--tracker", "tensorboard",
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert json.loads(ran.stdout)["epochs"] == 2
    assert ran.stderr.count("epoch 1/2") == 1
    assert len(list((tmp_path / "out" / "tracking").glob("*/events.out.tfevents.*"))) == 1
    assert max_abs_difference(tmp_path / "out", folder / "two" / "pgd-at") == 0


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_shards_make_the_batch(count: int, world: int) -> None:
    images = torch.arange(count)
    parts = [ShardedGenerator(rank, world).for_batch(count) for rank in range(world)]
    assert sum(part.weight for part in parts) == pytest.approx(1)
    shards = [images[part.shard] for part in parts if part.weight]
    assert sorted(torch.cat(shards).tolist()) == images.tolist()
    assert all(len(images[part.shard]) >= min(2, count) for part in parts)
    mean = sum(part.weight * images[part.shard].double().mean() for part in parts)
    assert float(mean) == pytest.approx(images.double().mean().item())


def test_image_gets_the_same_numbers_on_any_rank() -> None:
    whole = torch.rand(5, 2, generator=torch.Generator().manual_seed(3))
    for rank in range(2):
        part = ShardedGenerator(rank, 2).for_batch(5)
        part.manual_seed(3)
        assert torch.equal(sharded_sample(torch.rand, (len(range(rank, 5, 2)), 2), part), whole[rank::2])
        assert torch.equal(
            torch.rand(1, generator=part), torch.rand(11, generator=torch.Generator().manual_seed(3))[10:]
        )


@pytest.mark.parametrize("command", ["demo", "compare"])
def test_command_without_distribution_is_refused(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    result = CliRunner().invoke(cli, [command])
    assert result.exit_code == 2
    assert f"{command} cannot share its work" in result.stderr
