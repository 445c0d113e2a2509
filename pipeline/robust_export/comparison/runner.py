"""Runs a plan: first what gates are taken from and the choice of rates, then all arms with all seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

from torch import nn

from robust_export.comparison.job import Job, work
from robust_export.comparison.plan import Arm, Plan, slug
from robust_export.comparison.report import ArmResult, Comparison, SeedResult
from robust_export.data.source import digest_of
from robust_export.errors import InvalidValue, RobustExportError, SpartaMismatch, TrainingError
from robust_export.nn.build import build_model
from robust_export.nn.model_names import split_name
from robust_export.nn.sparta_file import save_sparta
from robust_export.recipe.recipe_file import to_tables, to_toml
from robust_export.recipe.schema import Recipe
from robust_export.utils.files import write_json

Say = Callable[[str], None]

PROCESS = "import sys; from robust_export.comparison.job import main; sys.exit(main(sys.argv[1]))"


def compare(
    plan: Plan,
    out: str | Path,
    *,
    jobs: int | None = None,
    device: str = "auto",
    say: Say = lambda line: None,
) -> Comparison:
    """Train every arm with every seed, attack each network by AutoAttack, and write what came out.

    A run that is finished is kept, one that was interrupted goes on: the same call does what is left.

    Args:
        out: gets results.json, results.md, results.csv, results.png, and the runs' bundles.
        jobs: runs at a time, each with one thread; by default as many as there are cores, 1 on a GPU. With 1
            they run in this process.

    Raises:
        InvalidValue, UnknownName: for a plan that cannot be made into recipes of known models.
        SpartaMismatch: if the widths of a transfer's backbones differ.
        TrainingError: if runs failed, naming them; the others are finished all the same.
    """
    folder, pool = Path(out), Pool(_count(jobs, device), device, say)
    check(plan)
    spare = plan.seeds + (len(plan.rates) > 1)  # seeds, one more where rates are chosen
    sources = {
        (arm.name, seed): source_job(plan, arm, seed, folder, device) for arm, seed in _pairs(plan, spare)
    }
    pool.run([job for job in sources.values() if job is not None])
    rates = choose_rates(plan, folder, pool, sources)
    wanted = {}
    for arm, seed in _pairs(plan, plan.seeds):
        recipe = plan.recipe(arm, seed, _folder(sources[arm.name, seed]), rates[arm.name])
        place = folder / "runs" / slug(arm.name) / f"seed-{seed}"
        wanted[arm.name, seed] = Job(place, to_tables(recipe), device)
    results = pool.run(list(wanted.values()))

    def seeds_of(arm: Arm) -> list[SeedResult]:
        return [SeedResult.of(results[wanted[arm.name, seed].folder]) for seed in range(plan.seeds)]

    found = Comparison([ArmResult(arm.name, rates[arm.name], seeds_of(arm)) for arm in plan.arms])
    found.write(folder)
    return found


def check(plan: Plan) -> None:
    """Raise what is wrong with a recipe, a model's name or a transfer's widths; nothing is trained yet."""
    for arm in plan.arms:
        if arm.source is None:
            split_name(plan.recipe(arm, 0).model.name)
        else:
            _check_transfer(plan, arm)


def _check_transfer(plan: Plan, arm: Arm) -> None:
    """Raise SpartaMismatch if a function of the source, here one that learnt nothing, does not fit."""
    with TemporaryDirectory() as folder:
        learnt = Path(folder) / "sparta.safetensors"
        source, target = plan.source_recipe(arm, 0), plan.recipe(arm, 0, learnt)
        save_sparta(_random(source), learnt)
        try:
            _random(target)
        except SpartaMismatch as error:
            raise SpartaMismatch(f"{arm.name}: {error}") from error


def _random(recipe: Recipe) -> nn.Module:
    """Return the network of a recipe as it would be without weights to begin with."""
    return build_model(replace(recipe.model, init="random"), recipe.sparta, num_classes=2)


def _pairs(plan: Plan, seeds: int) -> list[tuple[Arm, int]]:
    """Return arms with seeds, seed by seed, so that what is done first compares all arms already."""
    return [(arm, seed) for seed in range(seeds) for arm in plan.arms]


def source_job(plan: Plan, arm: Arm, seed: int, folder: Path, device: str) -> Job | None:
    """Return the run that an arm takes its gates from; arms that take the same share it."""
    if arm.source is None:
        return None
    recipe = plan.source_recipe(arm, seed)
    name = f"{slug(arm.source.backbone)}-{_digest(recipe)}"
    return Job(folder / "sources" / name / f"seed-{seed}", to_tables(recipe), device, attack=False)


def choose_rates(
    plan: Plan, folder: Path, pool: Pool, sources: dict[tuple[str, int], Job | None]
) -> dict[str, float]:
    """Return for each arm the multiple of train.lr with the best robust validation accuracy.

    It is measured with the seed after those that are compared, so that no arm is chosen by its own test.
    """
    if len(plan.rates) == 1:
        return {arm.name: plan.rates[0] for arm in plan.arms}
    seed, wanted = plan.seeds, {}
    for arm in plan.arms:
        for rate in plan.rates:
            recipe = plan.recipe(arm, seed, _folder(sources[arm.name, seed]), rate)
            place = folder / "rates" / slug(arm.name) / f"lr-{recipe.train.lr:g}"
            wanted[arm.name, rate] = Job(place, to_tables(recipe), pool.device, attack=False)
    found = pool.run(list(wanted.values()))

    def score(arm: Arm, rate: float) -> float:
        return float(found[wanted[arm.name, rate].folder]["val"]["robust_accuracy"])

    best = {arm.name: max(plan.rates, key=lambda rate, arm=arm: score(arm, rate)) for arm in plan.arms}  # type: ignore[misc]
    pool.say("learning rates: " + ", ".join(f"{name} x{rate:g}" for name, rate in best.items()))
    return best


def _folder(source: Job | None) -> Path | None:
    return None if source is None else source.folder


def _digest(recipe: Recipe) -> str:
    """Return eight digits that tell recipes apart, whatever their seed."""
    lines = [line for line in to_toml(recipe).splitlines() if not line.startswith("seed = ")]
    return digest_of("\n".join(lines).encode())[:8]


class Pool:
    """Runs jobs, several at a time as processes of their own; none is left behind."""

    def __init__(self, count: int, device: str, say: Say) -> None:
        self.count, self.device, self.say = count, device, say
        self.running: set[subprocess.Popen[str]] = set()
        self.lock, self.closed = Lock(), False

    def run(self, jobs: Sequence[Job]) -> dict[Path, dict[str, Any]]:
        """Return the results by folder; a job that several ask for is done once.

        Raises:
            TrainingError: if some failed; the others are finished first.
        """
        unique = {job.folder: job for job in jobs}
        done: dict[Path, dict[str, Any]] = {}
        failed: dict[Path, str] = {}

        def one(job: Job) -> None:
            try:
                known = job.result()
                done[job.folder] = known or self._do(job)
            except RobustExportError as error:
                failed[job.folder] = str(error)
                self.say(f"{job.folder} failed: {str(error).splitlines()[0]}")
                return
            how = "was there already" if known else f"{done[job.folder]['seconds']:.0f} s"
            score = done[job.folder].get("robust_accuracy")
            said = f"robust {score:.1%}" if score is not None else "trained"
            self.say(f"{len(done) + len(failed)}/{len(unique)} {job.folder}: {said} ({how})")

        self._all(one, list(unique.values()))
        if failed:
            raise TrainingError(
                f"{len(failed)} of {len(unique)} runs failed, the others are kept:\n  "
                + "\n  ".join(f"{folder}: {text}" for folder, text in failed.items())
                + "\nMend what is named, and give the same command again."
            )
        return done

    def _all(self, one: Callable[[Job], None], jobs: Sequence[Job]) -> None:
        """Do all of them; an interruption asks what runs to stop, and waits until it did."""
        if self.count == 1:
            for job in jobs:
                one(job)
            return
        with ThreadPoolExecutor(self.count) as threads:
            try:
                list(threads.map(one, jobs))
            except BaseException:
                self._close()
                threads.shutdown(wait=True, cancel_futures=True)
                raise

    def _do(self, job: Job) -> dict[str, Any]:
        if self.count == 1:
            return work(job)
        file = job.folder.with_name(f"{job.folder.name}.job.json")
        write_json(file, {**vars(job), "folder": str(job.folder)})
        command = [sys.executable, "-c", PROCESS, str(file)]
        with self.lock:
            if self.closed:
                raise TrainingError("not started")
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # the terminal's Ctrl-C is ours, to ask them once
            )  # fmt: skip
            self.running.add(process)
        _, said = process.communicate()
        self.running.discard(process)
        file.unlink()
        if process.returncode or (result := job.result()) is None:
            lines = said.strip().splitlines() or [f"the process ended with {process.returncode}"]
            raise TrainingError(lines[-1] if "Traceback" in said else "\n  ".join(lines))
        return result

    def _close(self) -> None:
        """Ask what runs to save its state and stop; start nothing more."""
        with self.lock:
            self.closed = True
            for process in list(self.running):  # which may end meanwhile
                process.terminate()


def _count(jobs: int | None, device: str) -> int:
    if jobs is not None and jobs < 1:
        raise InvalidValue(f"jobs is {jobs}; expected 1 or more")
    if jobs is not None:
        return jobs
    from robust_export.utils.device import find_device

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if find_device(device).type == "cpu" else 1
