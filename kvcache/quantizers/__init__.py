"""Quantization schemes. Add yours to `QUANTIZERS` with an unused code, and the quantizer and wire tests run on it."""

from kvcache.quantizers.as_is import AsIs
from kvcache.quantizers.base import QuantizeError, Quantizer, Scheme
from kvcache.quantizers.delta import Delta
from kvcache.quantizers.rotated import Rotated
from kvcache.quantizers.symmetric import Symmetric

KIVI_GROUP = 64

QUANTIZERS: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("bf16", 0, AsIs(), AsIs()),
        Scheme("int8", 1, Symmetric(8), Symmetric(8)),
        Scheme("int4", 2, Symmetric(4), Symmetric(4)),
        Scheme("int8_kivi", 3, Symmetric(8, KIVI_GROUP), Symmetric(8)),
        Scheme("int4_kivi", 4, Symmetric(4, KIVI_GROUP), Symmetric(4)),
        Scheme("delta", 5, Delta(), Delta()),
        Scheme("k8v4", 6, Symmetric(8), Symmetric(4)),
        Scheme("k16v4", 7, AsIs(), Symmetric(4)),
        Scheme("int4_hadamard", 8, Rotated(Symmetric(4)), Rotated(Symmetric(4))),
    )
}
CODES: dict[int, Scheme] = {scheme.code: scheme for scheme in QUANTIZERS.values()}

__all__ = ["CODES", "KIVI_GROUP", "QUANTIZERS", "QuantizeError", "Quantizer", "Scheme"]
