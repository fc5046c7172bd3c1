"""No quantization: 16 bits per value."""

import torch
from torch import Tensor

from kvcache.quantizers.base import QuantizeError, Quantizer, Shape, rounding


class AsIs(Quantizer):
    """Lossless storage of 16-bit values; float32 is rounded to bfloat16."""

    def encode(self, x: Tensor) -> Tensor:
        sixteen = x.contiguous() if x.dtype.itemsize == 2 else x.bfloat16()
        # A sum is the cheapest test for non-finite values; a finite tensor's sum may overflow, hence the second test.
        if not sixteen.sum(dtype=torch.float32).isfinite() and not sixteen.isfinite().all():
            raise QuantizeError("values that are not finite, or beyond bfloat16")
        return sixteen.reshape(-1).view(torch.uint8)

    def decode(self, buffer: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
        self.check_size(buffer, shape)
        sixteen = torch.bfloat16 if dtype == torch.float32 else dtype
        return buffer.view(sixteen).view(shape).to(dtype)

    def size(self, shape: Shape) -> int:
        return 2 * shape[0] * shape[1] * shape[2]

    def bound(self, x: Tensor) -> Tensor:
        return rounding(x, torch.bfloat16) if x.dtype == torch.float32 else torch.zeros((), device=x.device)
