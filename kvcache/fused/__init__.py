"""Whole caches packed, checked, unpacked and scored by a few kernels; only where Triton is installed."""

from importlib.util import find_spec

import torch

AVAILABLE = torch.cuda.is_available() and find_spec("triton") is not None
"""Whether this process can run them; the other modules of this package can't be imported without Triton."""
