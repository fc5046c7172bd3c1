"""Whole caches packed, checked and unpacked by a few kernels: see `codec`; only where Triton is installed."""
