"""What an edge agent computes with; here from a profile: its times, and synthetic bytes instead of a cache."""

import random
from collections.abc import AsyncIterator
from typing import Protocol

from allocator.problem import ModeOption
from models.clock import sleep_ms
from models.profiles import ModelProfile

BLOCK_BYTES = 64 * 1024
# Incompressible, made once: what the bytes are doesn't matter to the link, that they are there does.
_BLOCK = memoryview(random.Random(0).randbytes(BLOCK_BYTES))


class Payload(Protocol):
    """The bytes that a mode sends."""

    size: int

    def pieces(self) -> AsyncIterator[memoryview]:
        """The payload in order, `size` bytes together; each piece is made when it is asked for."""
        ...


class SyntheticPayload:
    """`size` incompressible bytes that take no memory."""

    def __init__(self, size: int) -> None:
        self.size = size

    async def pieces(self) -> AsyncIterator[memoryview]:
        left = self.size
        while left > 0:
            yield _BLOCK[: min(left, BLOCK_BYTES)]
            left -= BLOCK_BYTES


class Work(Protocol):
    """One request on its edge, prefilled."""

    def offer(self, options: tuple[ModeOption, ...]) -> tuple[ModeOption, ...]:
        """The profile's options, with what is known better of this very request."""
        ...

    async def encode(self, mode: str, edge_ms: float) -> Payload:
        """The payload of a mode, ready to be sent from its beginning."""
        ...

    async def decode(self, edge_ms: float) -> str:
        """The answer on the edge (mode `local`); empty where no model runs."""
        ...

    def quality(self, answer: str) -> float | None:
        """Of an answer, as measured, in the profile's basis; None where only the profile knows."""
        ...


class EdgeRuntime(Protocol):
    """The edge model of one agent; the agent calls it for one request at a time."""

    async def prefill(self, request_id: int) -> Work:
        """Prefill the context (and score it)."""
        ...


class ProfileEdge:
    """Takes the profile's time for each stage; being the same for every request, it is its own `Work`.

    Prefill comes before the mode is known, so it takes the shortest of the allowed modes' prefills; what a mode needs
    beyond that is in its option's `edge_ms` (see `agents.offer`).
    """

    def __init__(self, prefill_ms: float, payload_bytes: dict[str, int]) -> None:
        self._prefill_ms = prefill_ms
        self._payload_bytes = payload_bytes

    async def prefill(self, request_id: int) -> "ProfileEdge":
        await sleep_ms(self._prefill_ms)
        return self

    def offer(self, options: tuple[ModeOption, ...]) -> tuple[ModeOption, ...]:
        return options

    async def encode(self, mode: str, edge_ms: float) -> SyntheticPayload:
        await sleep_ms(edge_ms)
        return SyntheticPayload(self._payload_bytes[mode])

    async def decode(self, edge_ms: float) -> str:
        await sleep_ms(edge_ms)
        return ""

    def quality(self, answer: str) -> None:
        return None


def common_prefill_ms(profile: ModelProfile, modes: list[str]) -> float:
    """Edge prefill that every one of `modes` needs, in ms."""
    return min(profile.edge_prefill_of(mode) for mode in modes)
