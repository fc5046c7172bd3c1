"""What clients say to the helper: small JSON messages over a unix SOCK_SEQPACKET socket, one message each way.

A request is `{"id": 7, "op": "channel", "mbps": 20.0}`; its answer `{"id": 7, "ok": true, "result": null}` or
`{"id": 7, "ok": false, "error": "..."}` (`id` null if the request couldn't be read). A socket that was asked for
travels with the answer as SCM_RIGHTS.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from netem.impairments import Impairments
from netem.link import CongestionControl
from netem.wire import MAX_RATE_MBPS, MIN_SHAPED_MBPS

MAX_REQUEST_BYTES = 1 << 16
MAX_ANSWER_BYTES = 1 << 17  # counters of 1024 agents
MAX_AGENTS = 1024
MAX_WORKERS = 64

Rate = Annotated[float, Field(ge=MIN_SHAPED_MBPS, le=MAX_RATE_MBPS, allow_inf_nan=False)]
Agent = Annotated[int, Field(ge=0, lt=MAX_AGENTS)]
Worker = Annotated[int, Field(ge=0, lt=MAX_WORKERS)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[int, Field(ge=0)]


class Build(_Request):
    """Make the link; once only."""

    op: Literal["build"]
    agents: Annotated[int, Field(ge=1, le=MAX_AGENTS)]
    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)]
    channel_mbps: Rate
    grant_mbps: Rate
    congestion: CongestionControl = "reno"
    impairments: Impairments = Impairments()

    @model_validator(mode="after")
    def _all_agents(self) -> Self:
        if self.impairments.link_of and len(self.impairments.link_of) != self.agents:
            raise ValueError(f"impairments: {len(self.impairments.link_of)} agents' links for {self.agents} agents")
        return self


class Listen(_Request):
    """A listening socket for a worker."""

    op: Literal["listen"]
    worker: Worker


class Connect(_Request):
    """A socket from an agent to a worker."""

    op: Literal["connect"]
    agent: Agent
    worker: Worker


class SetGrants(_Request):
    """New grants for some agents."""

    op: Literal["grants"]
    mbps: dict[Agent, Rate]


class SetChannel(_Request):
    """A new true rate of the shared hop."""

    op: Literal["channel"]
    mbps: Rate


class Counters(_Request):
    """What went through both hops so far."""

    op: Literal["counters"]


class Used(_Request):
    """What all agents together sent through the shared hop so far; cheaper than all counters."""

    op: Literal["used"]


class Close(_Request):
    """The client is done; the helper closes the connection."""

    op: Literal["close"]


Request = Build | Listen | Connect | SetGrants | SetChannel | Counters | Used | Close
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="op")])


def parse_request(message: bytes) -> Request:
    """Raises pydantic.ValidationError (a ValueError) for anything but a well-formed request within bounds."""
    return _REQUEST.validate_json(message)


def encode(message: dict[str, Any]) -> bytes:
    """One message, as compact JSON."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
