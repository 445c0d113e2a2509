"""Results of a benchmark: comparisons as JSON and as tables, with ratios to a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from robust_export.utils.timing import Timing

SCHEMA = 1


@dataclass(frozen=True)
class Comparison:
    """Timings of several implementations, measured interleaved on the same inputs.

    Attributes:
        baseline: the implementation that ratios refer to.
        facts: batch, image_size, bytes, ...
    """

    title: str
    threads: int
    baseline: str
    timings: Mapping[str, Timing]
    facts: dict[str, Any] = field(default_factory=dict)

    def ratio(self, name: str) -> float:
        """Return the median time of an implementation divided by the baseline's."""
        return self.timings[name].median / self.timings[self.baseline].median


@dataclass(frozen=True)
class BenchmarkReport:
    """Comparisons made in one process.

    Attributes:
        missing: implementations that this machine does not have, and why.
    """

    model: str
    comparisons: list[Comparison]
    missing: dict[str, str]
    fused_nodes: int
    sparta_nodes: int
    provenance: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA, "model": self.model, "fused_nodes": self.fused_nodes,
            "sparta_nodes": self.sparta_nodes, "runs": [_to_dict(item) for item in self.comparisons],
            "missing": self.missing, "provenance": self.provenance,
        }  # fmt: skip

    def tables(self) -> list[Table]:
        """Return the terminal's table of each comparison."""
        return [_table(item) for item in self.comparisons]


def _to_dict(item: Comparison) -> dict[str, Any]:
    return {
        "title": item.title, "threads": item.threads, "reference": item.baseline, **item.facts,
        "timings": {
            name: asdict(timing) | {"ratio": item.ratio(name)} for name, timing in item.timings.items()
        },
    }  # fmt: skip


def _table(item: Comparison) -> Table:
    threads = f"{item.threads} thread" + ("s" if item.threads > 1 else "")
    table = Table(title=f"{item.title}, {threads}", title_justify="left")
    table.add_column("implementation")
    for name in ("median", "quartiles", f"times {item.baseline}"):
        table.add_column(name, justify="right")
    for name, timing in item.timings.items():
        quartiles = f"{1e3 * timing.low:.3g} to {1e3 * timing.high:.3g}"
        table.add_row(name, f"{1e3 * timing.median:.3g} ms", quartiles, f"{item.ratio(name):.3f}")
    if "copy_seconds" in item.facts:
        share = item.facts["copy_seconds"] / item.timings[item.baseline].median
        table.caption = (
            f"Sparta reads and writes feature maps of {item.facts['bytes'] / 1e6:.3g} MB; a large copy, at "
            f"{item.facts['copy_bandwidth'] / 1e9:.1f} GB/s, would take {share:.3f} of the baseline's time"
        )
    return table
