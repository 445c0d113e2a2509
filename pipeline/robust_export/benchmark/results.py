"""What a benchmark found: JSON, and tables of ratios measured in one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from robust_export.utils.timing import Timing

SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """One comparison: the same inputs, threads and moment for every contestant."""

    title: str
    threads: int
    reference: str  # the contestant that the ratios are of
    timings: Mapping[str, Timing]
    facts: dict[str, Any] = field(default_factory=dict)  # batch, image_size, bytes, ...

    def ratio(self, name: str) -> float:
        """Return how many times as long as the reference a contestant takes."""
        return self.timings[name].median / self.timings[self.reference].median


@dataclass(frozen=True)
class Bench:
    """Comparisons that were made in one process."""

    model: str
    runs: list[Run]
    missing: dict[str, str]  # contestants that this machine does not have, and why
    fused_nodes: int
    sparta_nodes: int
    provenance: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA, "model": self.model, "fused_nodes": self.fused_nodes,
            "sparta_nodes": self.sparta_nodes,
            "runs": [
                {
                    "title": run.title, "threads": run.threads, "reference": run.reference, **run.facts,
                    "timings": {
                        name: asdict(timing) | {"ratio": run.ratio(name)}
                        for name, timing in run.timings.items()
                    },
                }
                for run in self.runs
            ],
            "missing": self.missing, "provenance": self.provenance,
        }  # fmt: skip

    def tables(self) -> list[Table]:
        """Return what the terminal shows, a table for each comparison."""
        return [_table(run) for run in self.runs]


def _table(run: Run) -> Table:
    threads = f"{run.threads} thread" + ("s" if run.threads > 1 else "")
    table = Table(title=f"{run.title}, {threads}", title_justify="left")
    table.add_column("what runs")
    for name in ("median", "quartiles", f"times {run.reference}"):
        table.add_column(name, justify="right")
    for name, timing in run.timings.items():
        spread = f"{1e3 * timing.low:.3g} to {1e3 * timing.high:.3g}"
        table.add_row(name, f"{1e3 * timing.median:.3g} ms", spread, f"{run.ratio(name):.3f}")
    if "copy_seconds" in run.facts:
        share = run.facts["copy_seconds"] / run.timings[run.reference].median
        table.caption = (
            f"Sparta's planes are {run.facts['bytes'] / 1e6:.3g} MB to read and write; a large copy moves "
            f"{run.facts['copy_bandwidth'] / 1e9:.1f} GB/s here: {share:.3f} of the reference"
        )
    return table
