"""How exact the links are on this machine: measured transfer times, fairness and reaction times against the ideal."""

from netem.bench.plan import bench_links
from netem.bench.tables import bench_tables

__all__ = ["bench_links", "bench_tables"]
