"""How fast it is: whole models and the operator alone, side by side in one process."""

from robust_export.benchmark.end_to_end import bench_bundle, bench_network
from robust_export.benchmark.engines import bench_engines
from robust_export.benchmark.operator import bench_operator
from robust_export.benchmark.results import Bench

__all__ = ["Bench", "bench_bundle", "bench_engines", "bench_network", "bench_operator"]
