"""Results of a comparison: accuracies of all seeds, as JSON, Markdown, CSV, a table and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from robust_export.comparison.statistics import Difference, holm, mean_sd, paired
from robust_export.utils.files import to_json, write_atomically
from robust_export.utils.provenance import machine, now, versions

SCHEMA = 1
METRICS = ("clean_accuracy", "robust_accuracy")


@dataclass(frozen=True)
class SeedResult:
    """Accuracies of one network on the test images; robust accuracy is under AutoAttack.

    Attributes:
        facts: attacks, val, best_epoch, weights_sha256, sparta_from, recipe, ...
    """

    seed: int
    clean_accuracy: float
    robust_accuracy: float
    samples: int
    facts: dict[str, Any]

    @classmethod
    def from_job(cls, result: dict[str, Any]) -> SeedResult:
        """Return the result of a job that `run_job` returned."""
        own = ("seed", *METRICS, "samples")
        facts = {key: value for key, value in result.items() if key not in own}
        return cls(**{key: result[key] for key in own}, facts=facts)

    def to_dict(self) -> dict[str, Any]:
        return {**self.facts, **{key: value for key, value in vars(self).items() if key != "facts"}}


@dataclass(frozen=True)
class ArmResult:
    """Results of an arm in the order of seeds, and its multiple of train.lr."""

    name: str
    rate: float
    seeds: list[SeedResult]

    def values(self, metric: str) -> list[float]:
        return [getattr(seed, metric) for seed in self.seeds]


@dataclass(frozen=True)
class Comparison:
    """Results of all arms over the same seeds; differences are from the first."""

    arms: list[ArmResult]

    def differences(self, metric: str) -> dict[str, Difference]:
        """Return the difference of every other arm from the first, with p-values corrected by Holm."""
        first, *others = self.arms
        differences = [paired(arm.values(metric), first.values(metric)) for arm in others]
        corrected = holm([difference.p_t for difference in differences])
        return {
            arm.name: replace(difference, p_holm=p)
            for arm, difference, p in zip(others, differences, corrected, strict=True)
        }

    def to_dict(self) -> dict[str, Any]:
        summary = {
            metric: {
                arm.name: dict(zip(("mean", "sd"), mean_sd(arm.values(metric)), strict=True))
                | ({"difference": asdict(differences[arm.name])} if arm.name in differences else {})
                for arm in self.arms
            }
            for metric in METRICS
            for differences in [self.differences(metric)]
        }
        return {
            "schema": SCHEMA, "reference": self.arms[0].name, "seeds": len(self.arms[0].seeds),
            "samples": self.arms[0].seeds[0].samples, "summary": summary,
            "arms": [
                {"name": arm.name, "rate": arm.rate, "runs": [seed.to_dict() for seed in arm.seeds]}
                for arm in self.arms
            ],
            "provenance": {"created": now(), "versions": versions(), "machine": _machine()},
        }  # fmt: skip

    def rows(self) -> list[list[str]]:
        """Return the rows of the table, in the columns HEAD."""
        differences, rows = self.differences("robust_accuracy"), []
        for arm in self.arms:
            clean, robust = (_percent(*mean_sd(arm.values(metric))) for metric in METRICS)
            rows.append([arm.name, f"{arm.rate:g}", clean, robust, *_cells(differences.get(arm.name))])
        return rows

    def table(self) -> Table:
        """Return the table for the terminal."""
        seeds = len(self.arms[0].seeds)
        table = Table(title=f"AutoAttack on {self.arms[0].seeds[0].samples} images, {seeds} seeds")
        for index, name in enumerate(HEAD):
            table.add_column(name, justify="left" if index == 0 else "right")
        for row in self.rows():
            table.add_row(*row)
        return table

    def write(self, folder: Path) -> None:
        """Write results.json, results.md, results.csv and results.png."""
        write_atomically(folder / "results.json", to_json(self.to_dict()))
        write_atomically(folder / "results.md", self._markdown())
        write_atomically(folder / "results.csv", self._csv())
        write_atomically(folder / "results.png", self._plot())

    def _markdown(self) -> str:
        first, n = self.arms[0], len(self.arms[0].seeds)
        lines = [_line(HEAD), _line(["---", *["---:"] * (len(HEAD) - 1)]), *map(_line, self.rows())]
        return "\n".join([
            *lines, "",
            f"Accuracies on {first.seeds[0].samples} test images, robust under AutoAttack: mean ± standard "
            f"deviation over {n} seeds. Differences are paired by seed with {first.name}: 95 % interval, p "
            f"of a paired t-test, the same corrected for {len(self.arms) - 1} arms (Holm), and p of the "
            f"sign-flip test, which with {n} seeds is at least {2 / 2**n:.3g}.", "",
        ])  # fmt: skip

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["arm", "seed", *METRICS])
        for arm in self.arms:
            for seed in arm.seeds:
                writer.writerow([arm.name, seed.seed, seed.clean_accuracy, seed.robust_accuracy])
        return text.getvalue()

    def _plot(self) -> bytes:
        """Return a PNG of the robust accuracy of every seed, and of the mean with its 95 % interval."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure((7, 0.5 * len(self.arms) + 1.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for row, arm in enumerate(reversed(self.arms)):
            values = [100 * value for value in arm.values("robust_accuracy")]
            zero = paired(values, [0.0] * len(values))
            axes.plot(values, [row] * len(values), "o", color="0.6", markersize=4)
            half_width = zero.ci95[1] - zero.mean
            axes.errorbar(zero.mean, row, xerr=half_width, fmt="s", color="C0", capsize=3)
        axes.set_yticks(range(len(self.arms)), [arm.name for arm in reversed(self.arms)])
        figure.supxlabel(  # centred on the figure: long arm names make the axes narrow
            "robust accuracy under AutoAttack, %: seeds, mean and its 95 % interval", fontsize="medium"
        )
        axes.grid(axis="x", alpha=0.3)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=150, metadata={"Software": None})
        return image.getvalue()


HEAD = ["arm", "lr x", "clean %", "robust %", "difference", "95 % interval", "p (t)", "p (Holm)", "p (signs)"]


def _cells(difference: Difference | None) -> list[str]:
    if difference is None:
        return [""] * 5
    low, high = difference.ci95
    p_values = [
        "-" if p is None else f"{p:.3g}" for p in (difference.p_t, difference.p_holm, difference.p_signs)
    ]
    return [f"{100 * difference.mean:+.1f}", f"[{100 * low:+.1f}, {100 * high:+.1f}]", *p_values]


def _percent(mean: float, sd: float) -> str:
    return f"{100 * mean:.1f} ± {100 * sd:.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _machine() -> dict[str, Any]:
    from robust_export.utils.device import find_device

    return machine(find_device())
