"""Comparing activations over seeds: what is trained (plan), how it is run, and what the numbers say."""

from robust_export.comparison.plan import Arm, Plan, load_plan, simple_plan
from robust_export.comparison.report import Comparison
from robust_export.comparison.runner import compare

__all__ = ["Arm", "Comparison", "Plan", "compare", "load_plan", "simple_plan"]
