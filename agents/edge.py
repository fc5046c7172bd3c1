"""The interface of an edge agent's runtime, and its profile version: stage times and synthetic payload bytes."""

import random
from collections.abc import AsyncIterator
from typing import Protocol

from agents.offer import Offer
from allocator.problem import ModeOption
from kvcache.modes import Mode
from models.clock import sleep_ms
from models.lengths import Lengths

BLOCK_BYTES = 64 * 1024
# Incompressible bytes, made once: the link doesn't depend on the content.
_BLOCK = memoryview(random.Random(0).randbytes(BLOCK_BYTES))


class Payload(Protocol):
    """The bytes sent for a mode."""

    size: int

    def pieces(self) -> AsyncIterator[memoryview]:
        """The payload's pieces in order, `size` bytes in total; each is made on demand."""
        ...


class SyntheticPayload:
    """`size` incompressible bytes, without the memory for them."""

    def __init__(self, size: int) -> None:
        self.size = size

    async def pieces(self) -> AsyncIterator[memoryview]:
        left = self.size
        while left > 0:
            yield _BLOCK[: min(left, BLOCK_BYTES)]
            left -= BLOCK_BYTES


class Work(Protocol):
    """One prefilled request at its edge."""

    def offer(self, options: tuple[ModeOption, ...]) -> tuple[ModeOption, ...]:
        """The profile's options, refined by measurements of this request."""
        ...

    async def encode(self, mode: Mode, edge_ms: float) -> Payload:
        """Encode the payload of a mode, which takes `edge_ms` where no model runs."""
        ...

    async def decode(self, edge_ms: float) -> str:
        """Decode the answer at the edge (mode `local`); empty if no model runs."""
        ...

    def quality(self, answer: str) -> float | None:
        """The measured quality of an answer, in the profile's basis; None if only the profile states it."""
        ...


class EdgeRuntime(Protocol):
    """The edge model of one agent, which calls it for one request at a time."""

    async def prefill(self, request_id: int, lengths: Lengths | None = None) -> Work:
        """Prefill the context, and score it if a mode selects positions.

        Args:
            lengths: of the request; None where the runtime knows them itself.
        """
        ...


class ProfileEdge:
    """Takes the times of what the agent offers, and sends as many bytes as that says."""

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self._own = _ProfileWork(offer, None)
        self._own_prefill_ms = offer.prefill_ms()

    async def prefill(self, request_id: int, lengths: Lengths | None = None) -> "_ProfileWork":
        await sleep_ms(self.offer.prefill_ms(lengths) if lengths else self._own_prefill_ms)
        return _ProfileWork(self.offer, lengths) if lengths else self._own


class _ProfileWork:
    """One request that takes the profile's times. See `Work`."""

    __slots__ = ("_lengths", "_offer")

    def __init__(self, offer: Offer, lengths: Lengths | None) -> None:
        self._offer, self._lengths = offer, lengths

    def offer(self, options: tuple[ModeOption, ...]) -> tuple[ModeOption, ...]:
        return options

    async def encode(self, mode: Mode, edge_ms: float) -> SyntheticPayload:
        await sleep_ms(edge_ms)
        return SyntheticPayload(self._offer.payload_bytes(mode, self._lengths))

    async def decode(self, edge_ms: float) -> str:
        await sleep_ms(edge_ms)
        return ""

    def quality(self, answer: str) -> None:
        return None
