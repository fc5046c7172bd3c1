"""The runtime of a cloud worker: its interface, and the one that takes the times of profiles and runs no model."""

from collections.abc import Sequence
from typing import Any, Protocol

from allocator.online.interfaces import CloudJob
from cloud.frames import Header
from kvcache.modes import Mode
from models.clock import sleep_ms
from models.generation import Generation
from models.profiles import ModelProfile


class UnknownModel(LookupError):
    """A request names a model or mode that this run doesn't have."""


class BadBody(Exception):
    """A request's body can't be used. `reason` is one word, for counters."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Unservable(Exception):
    """A request with an acceptable header and body can't be served; the text says why."""


class Body(Protocol):
    """Decodes the body of one request piece by piece, for `CloudRuntime.prefill`."""

    def feed(self, piece: memoryview) -> None:
        """The next bytes; the view is only valid during the call. Raises BadBody; then `feed` isn't called again."""
        ...

    def finish(self) -> Any:
        """The decoded body, after its last byte. Raises BadBody."""
        ...


class Discarded:
    """A body whose bytes are ignored."""

    def feed(self, piece: memoryview) -> None:
        pass

    def finish(self) -> None:
        return None


class CloudRuntime(Protocol):
    """Serves the requests of one worker."""

    def check(self, header: Header) -> None:
        """Raises UnknownModel before any of the body is read."""
        ...

    def job_of(self, header: Header) -> CloudJob:
        """The deadline, cost and decoder of a checked request, for the worker's schedule."""
        ...

    def receive(self, header: Header) -> Body:
        """The decoder of the body of a checked request."""
        ...

    async def prefill(self, header: Header, content: Any) -> Any:
        """Prefill in the cloud, if the mode needs it; returns the state that `decode` starts from. Raises Unservable.

        Args:
            content: the body, as decoded by its `Body`.
        """
        ...

    async def decode(self, batch: Sequence[tuple[Header, Any]]) -> list[str]:
        """Decode requests of one decoder together; returns their answers, empty without a model. Raises Unservable."""
        ...


class ProfileCloud:
    """Takes the profile's time for each stage; the requests of a batch decode in the time of the longest."""

    def __init__(self, profiles: Sequence[ModelProfile]) -> None:
        self._profiles = profiles

    def check(self, header: Header) -> None:
        try:
            profile, _ = self._of(header)
        except IndexError:
            raise UnknownModel(f"model {header.model}, mode {header.mode}") from None
        if header.lengths is not None and profile.lengths is None:
            raise UnknownModel(f"model {header.model} with lengths: its profile has none")

    def job_of(self, header: Header) -> CloudJob:
        profile, mode = self._of(header)
        prefill_ms = profile.cloud_prefill_of(mode, header.lengths)
        return CloudJob(header.deadline_s, prefill_ms, profile.decode_of(mode, header.lengths), decoder=header.model)

    def generation_of(self, header: Header) -> Generation:
        """What a checked request asks of a worker that batches by iteration."""
        profile, mode = self._of(header)
        return profile.generation_of(mode, header.lengths)

    def receive(self, header: Header) -> Discarded:
        return Discarded()

    async def prefill(self, header: Header, content: Any) -> None:
        await sleep_ms(self.job_of(header).prefill_ms)

    async def decode(self, batch: Sequence[tuple[Header, Any]]) -> list[str]:
        await sleep_ms(max(self.job_of(header).decode_ms for header, _ in batch))
        return [""] * len(batch)

    def _of(self, header: Header) -> tuple[ModelProfile, Mode]:
        profile = self._profiles[header.model]
        return profile, profile.mode_at(header.mode)
