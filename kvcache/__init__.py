"""KV caches: which positions to keep, how to quantize them, how they look on the wire. Pure tensor and byte code."""
