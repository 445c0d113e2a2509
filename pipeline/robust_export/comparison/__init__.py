"""Comparison of activations over seeds: the plan, its execution, statistics and the report."""
