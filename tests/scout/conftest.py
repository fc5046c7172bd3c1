"""The Ray cluster of tests that need one."""

from tests.cluster.conftest import ray_head

__all__ = ["ray_head"]
