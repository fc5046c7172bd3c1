"""The protocol of clients and helper: JSON messages over a unix SOCK_SEQPACKET socket, one request and one answer.

A request is `{"id": 7, "op": "channel", "mbps": 20.0}`; its answer is `{"id": 7, "ok": true, "result": null}` or
`{"id": 7, "ok": false, "error": "..."}` (`id` is null if the request couldn't be parsed). A requested socket travels
with the answer as SCM_RIGHTS.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from netem.impairments import Impairments
from netem.link import CongestionControl
from netem.wire import MAX_SHAPED_MBPS, MIN_SHAPED_MBPS

MAX_REQUEST_BYTES = 1 << 16
MAX_ANSWER_BYTES = 1 << 17  # counters of 1024 agents
MAX_AGENTS = 1024
MAX_WORKERS = 64
NOT_BUILT = "the link isn't built yet"  # an error that passes

Rate = Annotated[float, Field(ge=MIN_SHAPED_MBPS, le=MAX_SHAPED_MBPS, allow_inf_nan=False)]
Agent = Annotated[int, Field(ge=0, lt=MAX_AGENTS)]
Worker = Annotated[int, Field(ge=0, lt=MAX_WORKERS)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[int, Field(ge=0)]


class Build(_Request):
    """Build the link; allowed once."""

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
    """Request a listening socket for a worker."""

    op: Literal["listen"]
    worker: Worker


class Connect(_Request):
    """Request a socket from an agent to a worker."""

    op: Literal["connect"]
    agent: Agent
    worker: Worker


class SetGrants(_Request):
    """Change the grants of some agents."""

    op: Literal["grants"]
    mbps: dict[Agent, Rate]


class SetConnected(_Request):
    """Cut an agent's link, or restore it."""

    op: Literal["connected"]
    agent: Agent
    connected: bool


class SetChannel(_Request):
    """Change the true rate of the shared hop."""

    op: Literal["channel"]
    mbps: Rate


class Counters(_Request):
    """Read the counters of both hops."""

    op: Literal["counters"]


class Used(_Request):
    """Read the bytes that all agents together sent through the shared hop; cheaper than `Counters`."""

    op: Literal["used"]


class Close(_Request):
    """End the conversation; the helper closes the connection."""

    op: Literal["close"]


Request = Build | Listen | Connect | SetGrants | SetConnected | SetChannel | Counters | Used | Close
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="op")])


def parse_request(message: bytes) -> Request:
    """Parse a request. Raises pydantic.ValidationError (a ValueError) if it is malformed or out of bounds."""
    return _REQUEST.validate_json(message)


def encode(message: dict[str, Any]) -> bytes:
    """Encode one message as compact JSON."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
