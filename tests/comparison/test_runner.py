"""Comparisons end to end: jobs, stored results, interruptions, the report."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from robust_export.attacks.autoattack import autoattack
from robust_export.bundle import Bundle
from robust_export.cli import cli
from robust_export.comparison import job_pool
from robust_export.comparison.job import Job, main, run_job
from robust_export.comparison.job_pool import JobPool
from robust_export.comparison.plan import plan_from_options
from robust_export.comparison.report import ArmResult, Comparison, SeedResult
from robust_export.comparison.runner import compare
from robust_export.data.datasets import load_dataset
from robust_export.errors import TrainingError
from robust_export.nn.load import load
from robust_export.recipe.recipe_file import merge, to_tables, to_toml
from robust_export.training.step import TrainStep
from tests import processes
from tests.conftest import TINY, tiny_recipe

SMALL = merge(TINY, {"train": {"epochs": 1}, "verify": {"samples": 60}})

PLAN = """
backbone = "resnet10t"
dataset = "digits"
seeds = 2
[[arms]]
activation = "relu"
[[arms]]
name = "frozen"
activation = "sparta"
sparta = {freeze = true}
from = {train = {lr = 0.2}}
"""


def command(folder: Path, jobs: int) -> list[str]:
    (folder / "plan.toml").write_text(PLAN)
    (folder / "recipe.toml").write_text(to_toml(tiny_recipe(**SMALL)))
    options = {
        "plan": folder / "plan.toml",
        "recipe": folder / "recipe.toml",
        "out": folder / "out",
        "jobs": jobs,
    }
    return ["compare", *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a comparison that ran in this process, one job at a time."""
    folder = tmp_path_factory.mktemp("compared")
    result = CliRunner().invoke(cli, [*command(folder, 1), "--json", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["reference"] == "relu"
    return folder


def test_arms_and_seeds(compared: Path) -> None:
    results = json.loads((compared / "out/results.json").read_text())
    assert [arm["name"] for arm in results["arms"]] == ["relu", "frozen"]
    for arm in results["arms"]:
        assert [run["seed"] for run in arm["runs"]] == [0, 1]
        assert all(0 <= run["robust_accuracy"] <= run["clean_accuracy"] <= 1 for run in arm["runs"])
    (sources,) = (compared / "out/sources").iterdir()
    for seed in (0, 1):
        loaded = load_file(compared / f"out/runs/frozen/seed-{seed}/sparta.safetensors")
        learnt = load_file(sources / f"seed-{seed}/sparta.safetensors")
        assert loaded
        assert all(torch.equal(tensor, learnt[name]) for name, tensor in loaded.items())
        assert Bundle.open(sources / f"seed-{seed}").recipe().train.lr == 0.2


def test_robust_accuracy_is_under_autoattack(compared: Path) -> None:
    bundle = Bundle.open(compared / "out/runs/relu/seed-1")
    pixels, labels = load_dataset("digits", "test", 8).batch(range(60))
    attacked = autoattack(load(bundle), pixels, labels, bundle.threat, bundle.recipe().verify)
    result = json.loads((compared / "out/runs/relu/seed-1.json").read_text())
    assert result["robust_accuracy"] == pytest.approx(attacked.broken_by.count("") / 60)
    assert result["clean_accuracy"] == pytest.approx(1 - attacked.broken_by.count("clean") / 60)


def test_only_missing_jobs_run_again(compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing job runs in its own process and gives the same weights."""
    before = json.loads((compared / "out/results.json").read_text())
    missing = compared / "out/runs/relu/seed-0"
    shutil.rmtree(missing)
    missing.with_name("seed-0.json").unlink()
    done: list[Path] = []
    original = JobPool._run

    def run(self: JobPool, job: Job) -> dict[str, Any]:
        done.append(job.folder)
        return original(self, job)

    monkeypatch.setattr(JobPool, "_run", run)
    monkeypatch.setattr(job_pool, "run_job", None)
    result = CliRunner().invoke(cli, [*command(compared, 2), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert done == [missing]
    assert "already done" in result.stderr
    assert "frozen" in result.stdout
    after = json.loads((compared / "out/results.json").read_text())
    for old, new in zip(before["arms"], after["arms"], strict=True):
        digests = [[one["weights_sha256"] for one in arm["runs"]] for arm in (old, new)]
        assert digests[0] == digests[1]


def test_other_jobs_finish_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: Job) -> dict[str, Any]:
        if "silu" in str(job.folder):
            raise TrainingError("the loss became nan")
        return {**result(0, 0.5, 0.4), "seconds": 1.0}

    monkeypatch.setattr(job_pool, "run_job", fail)
    lines: list[str] = []
    plan = plan_from_options("resnet10t", ["relu", "silu", "sparta"], "digits", 2, SMALL)
    with pytest.raises(TrainingError, match=r"(?s)2 of 6 runs failed.*silu/seed-0: the loss became nan"):
        compare(plan, tmp_path, jobs=1, device="cpu", say=lines.append)
    assert len([line for line in lines if "robust 40.0%" in line]) == 4


def test_rates_are_chosen_with_another_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int, float]] = []

    def fake(job: Job) -> dict[str, Any]:
        name, seed, lr = (
            job.recipe[s][k] for s, k in (("model", "name"), ("train", "seed"), ("train", "lr"))
        )
        done.append((name, seed, lr))
        best = 0.05 if name.endswith("relu") else 0.2
        return {**result(seed, 0.5, 0.4), "seconds": 1.0, "val": {"robust_accuracy": 1 - abs(lr - best)}}

    monkeypatch.setattr(job_pool, "run_job", fake)
    plan = plan_from_options("resnet10t", ["relu", "silu"], "digits", 2, SMALL, rates=[0.5, 1, 2])
    comparison = compare(plan, tmp_path, jobs=1, device="cpu")
    assert [arm.rate for arm in comparison.arms] == [0.5, 2]
    chosen = {(name, seed, lr) for name, seed, lr in done if seed < 2}
    assert chosen == {(f"resnet10t_{a}", s, lr) for a, lr in (("relu", 0.05), ("silu", 0.2)) for s in (0, 1)}
    assert {seed for _, seed, _ in done} == {0, 1, 2}


def run_job_and_stop(file: Path) -> None:
    """Run a job, and send SIGTERM to this process in the fifth step."""
    original, steps = TrainStep.__call__, iter(range(1, 10**6))

    def step(self: TrainStep, *args: Any, **options: Any) -> Any:
        if next(steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **options)

    TrainStep.__call__ = step  # type: ignore[method-assign]
    sys.exit(main(str(file)))


def test_sigterm_saves_the_state(tmp_path: Path) -> None:
    job = Job(tmp_path / "seed-0", to_tables(tiny_recipe(**SMALL)), "cpu", attack=False)
    (tmp_path / "job.json").write_text(json.dumps({**vars(job), "folder": str(job.folder)}))
    ended = processes.run(run_job_and_stop, tmp_path / "job.json")
    assert ended.returncode == 1
    assert "epoch 1, step 5" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert job.stored_result() is None
    assert run_job(job)["seed"] == 0
    assert job.stored_result() is not None


def test_interruption_ends_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes when the first job, which is done already, is reported; the second waits for a signal."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    wait = f"import signal; open({str(fifo)!r}, 'w').close(); signal.pause()"
    monkeypatch.setattr(job_pool, "PROCESS", wait)
    first, second = (Job(tmp_path / name, to_tables(tiny_recipe()), "cpu") for name in ("first", "second"))
    first.result_file.write_text(json.dumps({**result(0, 0.5, 0.4), "recipe": first.recipe}))

    def say(line: str) -> None:
        if "already done" in line:
            fifo.read_bytes()  # returns when the other process has started
            raise KeyboardInterrupt

    pool = JobPool(2, "cpu", say)
    with pytest.raises(KeyboardInterrupt):
        pool.run([first, second])
    assert not pool.running


def test_jobs_have_their_own_process_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the terminal must not reach them: the second signal to a job ends it without saving."""
    monkeypatch.setattr(job_pool, "PROCESS", "import os, sys; sys.exit(str(os.getpgid(0)))")
    job = Job(tmp_path / "job", to_tables(tiny_recipe()), "cpu")
    with pytest.raises(TrainingError) as error:
        JobPool(2, "cpu", lambda line: None)._run(job)
    assert int(str(error.value)) != os.getpgid(0)


def test_result_of_an_earlier_release(tmp_path: Path) -> None:
    """Its recipe lacks newer settings; a recipe with another value is another job."""
    recipe = to_tables(tiny_recipe())
    job = Job(tmp_path / "seed-0", recipe, "cpu")
    earlier = json.loads(json.dumps(recipe))
    del earlier["train"]["fused"]
    job.result_file.write_text(json.dumps({**result(0, 0.5, 0.4), "recipe": earlier}))
    assert job.stored_result() is not None
    for other in ({**earlier, "train": {**earlier["train"], "lr": 0.3}}, {"unknown": "section"}, None):
        job.result_file.write_text(json.dumps({"recipe": other}))
        assert job.stored_result() is None


def result(seed: int, clean: float, robust: float) -> dict[str, Any]:
    return {"seed": seed, "clean_accuracy": clean, "robust_accuracy": robust, "samples": 200, "attacks": {}}


def comparison(*arms: tuple[str, list[float]]) -> Comparison:
    return Comparison([
        ArmResult(name, 1.0, [SeedResult.from_job(result(i, 0.9, r)) for i, r in enumerate(robust)])
        for name, robust in arms
    ])  # fmt: skip


def test_report_files(tmp_path: Path) -> None:
    values = {"relu": [0.50, 0.52, 0.51], "sparta": [0.55, 0.58, 0.55], "none": [0.50, 0.52, 0.51]}
    comparison(*values.items()).write(tmp_path)
    summary = json.loads((tmp_path / "results.json").read_text())["summary"]["robust_accuracy"]
    assert summary["sparta"]["mean"] == pytest.approx(0.56)
    assert summary["sparta"]["difference"]["mean"] == pytest.approx(0.05)
    assert "difference" not in summary["relu"]
    assert summary["none"]["difference"]["p_t"] is None
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[3].startswith("| sparta | 1 | 90.0 ± 0.0 | 56.0 ± 1.7 | +5.0 |")
    assert "at least 0.25" in lines[-1]
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert len(rows) == 9
    robust = [float(row["robust_accuracy"]) for row in rows if row["arm"] == "sparta"]
    assert fmean(robust) == pytest.approx(0.56)
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--plan", "p.toml", "--backbone", "r18"], "--backbone with --plan"),
        (["--plan", "none.toml"], "none.toml"),
        (["--activations", "relu"], "two or more"),
        (["--activations", "relu,slu"], "silu, gelu, softplus"),
        (["--transfer-from", "r19"], "r18_sparta"),
        (["--seeds", "1"], "seeds is 1"),
        (["--rates", "a"], "--rates is 'a'"),
        (["--jobs", "0"], "jobs is 0"),
        (["--backbone", "vit_tiny_patch16_224", "--epochs", "0"], "'--epochs'"),
    ],
)
def test_bad_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["compare", *args])
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert not list(tmp_path.iterdir())
