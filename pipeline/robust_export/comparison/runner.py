"""Run a comparison: train the sources of transfers, choose learning rates, train all arms with all seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from robust_export.comparison.job import Job
from robust_export.comparison.job_pool import JobPool, Say, job_count
from robust_export.comparison.plan import Arm, Plan, slug
from robust_export.comparison.report import ArmResult, Comparison, SeedResult
from robust_export.data.source import digest_of
from robust_export.errors import SpartaMismatch
from robust_export.nn.build import build_model
from robust_export.nn.model_names import split_name
from robust_export.nn.sparta_file import save_sparta
from robust_export.recipe.recipe_file import to_tables, to_toml
from robust_export.recipe.schema import Recipe

SourceJobs = Mapping[tuple[str, int], Job | None]
"""The job of an arm's source, by name of the arm and seed; None for an arm without a source."""


def compare(
    plan: Plan,
    out: str | Path,
    *,
    jobs: int | None = None,
    device: str = "auto",
    say: Say = lambda line: None,
) -> Comparison:
    """Train every arm with every seed, attack each network by AutoAttack, and write the results.

    Finished jobs are not run again and interrupted ones are resumed, so the same call completes a comparison.

    Args:
        out: folder of results.json, results.md, results.csv, results.png, and the bundles.
        jobs: number of jobs at a time, each with one thread; by default the number of cores, 1 on a GPU. With
            1 they run in this process.

    Raises:
        InvalidValue, UnknownName: for a plan with invalid recipes or unknown models.
        SpartaMismatch: if the widths of a transfer's backbones differ.
        TrainingError: if jobs failed, naming them; the others are finished.
    """
    folder, pool = Path(out), JobPool(job_count(jobs, device), device, say)
    check_plan(plan)
    seeds = plan.seeds + (len(plan.rates) > 1)  # with the seed that rates are chosen with
    sources = {
        (arm.name, seed): source_job(plan, arm, seed, folder, device) for arm, seed in _pairs(plan, seeds)
    }
    pool.run([job for job in sources.values() if job is not None])
    rates = choose_rates(plan, folder, pool, sources)
    arm_jobs = {}
    for arm, seed in _pairs(plan, plan.seeds):
        recipe = plan.recipe(arm, seed, _folder(sources[arm.name, seed]), rates[arm.name])
        job_folder = folder / "runs" / slug(arm.name) / f"seed-{seed}"
        arm_jobs[arm.name, seed] = Job(job_folder, to_tables(recipe), device)
    results = pool.run(list(arm_jobs.values()))

    def seed_results(arm: Arm) -> list[SeedResult]:
        return [SeedResult.from_job(results[arm_jobs[arm.name, seed].folder]) for seed in range(plan.seeds)]

    comparison = Comparison([ArmResult(arm.name, rates[arm.name], seed_results(arm)) for arm in plan.arms])
    comparison.write(folder)
    return comparison


def check_plan(plan: Plan) -> None:
    """Raise the error of an invalid recipe, model name or transfer, before anything is trained.

    The Sparta function of each untrained source is loaded into the networks of its arms.

    Raises:
        SpartaMismatch: if it does not fit.
    """
    with TemporaryDirectory() as folder:
        for arm in plan.arms:
            if arm.source is None:
                split_name(plan.recipe(arm, 0).model.name)
                continue
            source = plan.source_recipe(arm, 0)
            file = Path(folder) / f"{_digest(source)}.safetensors"
            if not file.exists():
                save_sparta(_untrained(source), file)
            try:
                _untrained(plan.recipe(arm, 0, file))
            except SpartaMismatch as error:
                raise SpartaMismatch(f"{arm.name}: {error}") from error


def _untrained(recipe: Recipe) -> nn.Module:
    """Return the network of a recipe without pretrained weights."""
    return build_model(replace(recipe.model, init="random"), recipe.sparta, num_classes=2)


def _pairs(plan: Plan, seeds: int) -> list[tuple[Arm, int]]:
    """Return all arms with all seeds, seed by seed, so that an unfinished comparison has all arms."""
    return [(arm, seed) for seed in range(seeds) for arm in plan.arms]


def source_job(plan: Plan, arm: Arm, seed: int, folder: Path, device: str) -> Job | None:
    """Return the job of an arm's source; arms with equal sources get the same folder."""
    if arm.source is None:
        return None
    recipe = plan.source_recipe(arm, seed)
    name = f"{slug(arm.source.backbone)}-{_digest(recipe)}"
    return Job(folder / "sources" / name / f"seed-{seed}", to_tables(recipe), device, attack=False)


def choose_rates(plan: Plan, folder: Path, pool: JobPool, sources: SourceJobs) -> dict[str, float]:
    """Return for each arm the multiple of train.lr with the best robust validation accuracy.

    It is measured with the seed after those that are compared, so that no arm is chosen by its own results.
    """
    if len(plan.rates) == 1:
        return {arm.name: plan.rates[0] for arm in plan.arms}
    seed, jobs = plan.seeds, {}
    for arm in plan.arms:
        for rate in plan.rates:
            recipe = plan.recipe(arm, seed, _folder(sources[arm.name, seed]), rate)
            job_folder = folder / "rates" / slug(arm.name) / f"lr-{recipe.train.lr:g}"
            jobs[arm.name, rate] = Job(job_folder, to_tables(recipe), pool.device, attack=False)
    results = pool.run(list(jobs.values()))

    def score(arm: Arm, rate: float) -> float:
        return float(results[jobs[arm.name, rate].folder]["val"]["robust_accuracy"])

    best = {arm.name: max(plan.rates, key=lambda rate, arm=arm: score(arm, rate)) for arm in plan.arms}  # type: ignore[misc]
    pool.say("learning rates: " + ", ".join(f"{name} x{rate:g}" for name, rate in best.items()))
    return best


def _folder(source: Job | None) -> Path | None:
    return None if source is None else source.folder


def _digest(recipe: Recipe) -> str:
    """Return eight hexadecimal digits that identify a recipe without its seed."""
    lines = [line for line in to_toml(recipe).splitlines() if not line.startswith("seed = ")]
    return digest_of("\n".join(lines).encode())[:8]
