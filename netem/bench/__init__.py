"""Accuracy of the links on this machine: transfer times, fairness and reaction times against the ideal."""

from netem.bench.plan import bench_links
from netem.bench.tables import bench_tables

__all__ = ["bench_links", "bench_tables"]
