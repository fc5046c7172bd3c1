"""What a cloud worker computes with; here from a profile: its times instead of a model."""

from collections.abc import Sequence
from typing import Any, Protocol

from allocator.online.dispatcher import CloudJob
from cloud.frames import Header
from models.clock import sleep_ms
from models.profiles import ModelProfile, ModeProfile


class UnknownModel(LookupError):
    """A request names a model or mode that this run doesn't have."""


class BadBody(Exception):
    """What came in a request's body can't be used. `reason` is one word, for counters."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Unservable(Exception):
    """A request that looked right can't be served after all; the text says why."""


class Body(Protocol):
    """Takes the body of one request as it comes, and makes of it what `CloudRuntime.prefill` wants."""

    def feed(self, piece: memoryview) -> None:
        """The next bytes; the view is only valid during the call. Raises BadBody; then there is no more to come."""
        ...

    def finish(self) -> Any:
        """What the body held, now that it is whole. Raises BadBody."""
        ...


class Discarded:
    """A body whose bytes mean nothing."""

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
        """How a request that was checked is scheduled: its deadline, its cost, and its decoder."""
        ...

    def receive(self, header: Header) -> Body:
        """What takes the body of a request that was checked."""
        ...

    async def prefill(self, header: Header, content: Any) -> Any:
        """Prefill in the cloud, where the mode needs it; returns what `decode` starts from. Raises Unservable.

        Args:
            content: what the request's `Body` made of it.
        """
        ...

    async def decode(self, batch: Sequence[tuple[Header, Any]]) -> list[str]:
        """The answers of requests of one decoder, decoded together; empty where no model runs. Raises Unservable."""
        ...


class ProfileCloud:
    """Takes the profile's time for each stage, of a batch that of its longest; the worker is occupied for as long."""

    def __init__(self, profiles: Sequence[ModelProfile]) -> None:
        self._profiles = profiles

    def check(self, header: Header) -> None:
        try:
            self._of(header)
        except IndexError:
            raise UnknownModel(f"model {header.model}, mode {header.mode}") from None

    def job_of(self, header: Header) -> CloudJob:
        mode = self._of(header)
        return CloudJob(header.deadline_s, mode.cloud_prefill_ms, mode.decode_ms, decoder=header.model)

    def receive(self, header: Header) -> Discarded:
        return Discarded()

    async def prefill(self, header: Header, content: Any) -> None:
        await sleep_ms(self._of(header).cloud_prefill_ms)

    async def decode(self, batch: Sequence[tuple[Header, Any]]) -> list[str]:
        await sleep_ms(max(self._of(header).decode_ms for header, _ in batch))
        return [""] * len(batch)

    def _of(self, header: Header) -> ModeProfile:
        profile = self._profiles[header.model]
        return profile.modes[profile.mode_at(header.mode)]
