"""What an edge agent computes with: here, published or measured times and synthetic bytes instead of a model."""

import random
from collections.abc import Iterator
from typing import Protocol

from models.clock import sleep_ms
from models.profiles import ModelProfile

BLOCK_BYTES = 64 * 1024
# Incompressible, made once: what the bytes are doesn't matter to the link, that they are there does.
_BLOCK = memoryview(random.Random(0).randbytes(BLOCK_BYTES))


class Payload(Protocol):
    """The bytes that a mode sends."""

    size: int

    def pieces(self) -> Iterator[memoryview]:
        """The payload in order, `size` bytes together."""
        ...


class SyntheticPayload:
    """`size` incompressible bytes that take no memory."""

    def __init__(self, size: int) -> None:
        self.size = size

    def pieces(self) -> Iterator[memoryview]:
        left = self.size
        while left > 0:
            yield _BLOCK[: min(left, BLOCK_BYTES)]
            left -= BLOCK_BYTES


class EdgeRuntime(Protocol):
    """The edge model of one agent; the agent calls it for one request at a time."""

    async def prefill(self) -> None:
        """Prefill the context (and score it)."""
        ...

    async def encode(self, mode: str, edge_ms: float) -> Payload:
        """The payload of a mode."""
        ...

    async def decode(self, edge_ms: float) -> None:
        """Answer on the edge (mode `local`)."""
        ...


class ProfileEdge:
    """Takes the profile's time for each stage.

    Prefill comes before the mode is known, so it takes the shortest of the allowed modes' prefills; what a mode needs
    beyond that is in its option's `edge_ms` (see `agents.offer`).
    """

    def __init__(self, prefill_ms: float, payload_bytes: dict[str, int]) -> None:
        self._prefill_ms = prefill_ms
        self._payload_bytes = payload_bytes

    async def prefill(self) -> None:
        await sleep_ms(self._prefill_ms)

    async def encode(self, mode: str, edge_ms: float) -> SyntheticPayload:
        await sleep_ms(edge_ms)
        return SyntheticPayload(self._payload_bytes[mode])

    async def decode(self, edge_ms: float) -> None:
        await sleep_ms(edge_ms)


def common_prefill_ms(profile: ModelProfile, modes: list[str]) -> float:
    """Edge prefill that every one of `modes` needs, in ms."""
    return min(profile.edge_prefill_of(mode) for mode in modes)
