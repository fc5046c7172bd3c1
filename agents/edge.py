"""The interface of an edge agent's runtime, and its profile version: stage times and synthetic payload bytes."""

import random
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Protocol

from allocator.problem import ModeOption
from kvcache.modes import Mode
from models.clock import sleep_ms
from models.profiles import ModelProfile

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

    async def prefill(self, request_id: int) -> Work:
        """Prefill the context, and score it if a mode selects positions."""
        ...


class ProfileEdge:
    """Sleeps for the profile's stage times. All requests are alike, so it is its own `Work`.

    Prefill comes before the mode is known, so it takes the shortest of the allowed modes' prefills; the remainder of a
    longer one is in its option's `edge_ms` (see `agents.offer`).
    """

    def __init__(self, prefill_ms: float, payload_bytes: Mapping[Mode, int]) -> None:
        self._prefill_ms = prefill_ms
        self._payload_bytes = payload_bytes

    async def prefill(self, request_id: int) -> "ProfileEdge":
        await sleep_ms(self._prefill_ms)
        return self

    def offer(self, options: tuple[ModeOption, ...]) -> tuple[ModeOption, ...]:
        return options

    async def encode(self, mode: Mode, edge_ms: float) -> SyntheticPayload:
        await sleep_ms(edge_ms)
        return SyntheticPayload(self._payload_bytes[mode])

    async def decode(self, edge_ms: float) -> str:
        await sleep_ms(edge_ms)
        return ""

    def quality(self, answer: str) -> None:
        return None


def common_prefill_ms(profile: ModelProfile, modes: Collection[Mode]) -> float:
    """The edge prefill time common to all `modes`, in ms."""
    return min(profile.edge_prefill_of(mode) for mode in modes)
