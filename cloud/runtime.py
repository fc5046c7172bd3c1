"""What a cloud worker computes with: here, published or measured times instead of a model."""

from collections.abc import Sequence
from typing import Protocol

from cloud.frames import Header
from models.clock import sleep_ms
from models.profiles import ModelProfile


class UnknownModel(LookupError):
    """A request names a model or mode that this run doesn't have."""


class CloudRuntime(Protocol):
    """Serves one request after the other on one worker."""

    def check(self, header: Header) -> None:
        """Raises UnknownModel before any of the body is read."""
        ...

    def expected_ms(self, header: Header) -> float:
        """How long the worker will be occupied."""
        ...

    async def prefill(self, header: Header) -> None:
        """Prefill in the cloud, where the mode needs it."""
        ...

    async def decode(self, header: Header) -> None:
        """Produce the answer."""
        ...


class ProfileCloud:
    """Takes the profile's time for each stage; the worker is occupied for as long."""

    def __init__(self, profiles: Sequence[ModelProfile]) -> None:
        self._modes = [list(profile.modes.values()) for profile in profiles]

    def check(self, header: Header) -> None:
        if header.model >= len(self._modes) or header.mode >= len(self._modes[header.model]):
            raise UnknownModel(f"model {header.model}, mode {header.mode}")

    def expected_ms(self, header: Header) -> float:
        mode = self._modes[header.model][header.mode]
        return mode.cloud_prefill_ms + mode.decode_ms

    async def prefill(self, header: Header) -> None:
        await sleep_ms(self._modes[header.model][header.mode].cloud_prefill_ms)

    async def decode(self, header: Header) -> None:
        await sleep_ms(self._modes[header.model][header.mode].decode_ms)
