"""One thread: the tensors are small, and whoever runs tests may be measuring something else."""

import torch

torch.set_num_threads(1)
