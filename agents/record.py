"""One ledger row: everything that is known of one request, whatever became of it."""

import json
import math
from dataclasses import dataclass, fields
from enum import StrEnum
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from agents.arrivals import Arrival
from kvcache.modes import Mode, parse_mode
from models.lengths import Lengths

NEVER_RELEASED = "never released: "
"""How the reason begins of a scheduled request that no agent released, because its host was not there."""

STAGES = (
    "lateness",
    "queue",
    "prefill",
    "uplink_wait",
    "allocate",
    "encode",
    "handshake",
    "transfer",
    "cloud_queue",
    "cloud_prefill",
    "decode",
    "answer",
)
"""Where a request's time goes; the ledger has each as `<stage>_ms`."""


class Status(StrEnum):
    """What became of a request. Scheduled = met + late + rejected + failed, always."""

    MET = "met"
    LATE = "late"
    REJECTED = "rejected"
    FAILED = "failed"


class Slo(NamedTuple):
    """What a request's answer must keep, in ms: for the whole of it, its first token, and from token to token."""

    deadline_ms: float
    ttft_ms: float | None = None
    tpot_ms: float | None = None


@dataclass(slots=True)
class Record:
    """Times are seconds since the run's start (`_s`) or durations in milliseconds (`_ms`).

    Attributes:
        context_tokens, output_tokens: its lengths; 0 for those of the profile.
        answered_tokens: of its answer; 0 where they aren't counted.
        ttft_ms: from the intended time to the answer's first token at the agent; the latency where answers come whole.
        tpot_ms: mean time between its tokens; NaN where they come at once.
        ttft_slo_ms, tpot_slo_ms: what these two may be at most; NaN without such a limit.
        intended_s, lateness_ms: when the request should start, and how much later the emulator started it.
        queue_ms: waiting for the edge's compute; uplink_wait_ms: for the agent's own uplink; of a request
            that was sent again, until its last attempt began.
        allocate_ms: asking the allocator; handshake_ms: opening a connection, 0 where a warm one is used.
        transfer_ms: first byte sent to last byte at the worker; first_byte_ms: to the first (a part of it).
        answer_ms: from the end of decoding at the worker until the agent has the answer.
        latency_ms: from the intended time to the answer; NaN if there was none.
        predicted_ms: the same as the allocator predicted it.
        mode: as assigned; hedge: what went ahead of it, if anything; answered: the mode that the answer came from.
        likely: how probable the allocator thought it that the mode itself would be in time; NaN where it reckoned with
            one rate.
        estimate_mbps: what the allocator believed of the uplink.
        grant_mbps: the agent's share in force at the assignment; mean_grant_mbps: its mean while the request was on the
            wire, as the allocator changes grants with every arrival and departure (NaN where
            the turn ended before its allocator could tell).
        payload_bytes, wire_bytes: what was sent, once the worker needs no more of it (0 if it never came to that),
            in all attempts;
            wire bytes include the headers of every layer.
        quality_credited: the answer's quality whether or not the deadline was met (as the papers count);
            quality_delivered: the same if it was met, else 0.
        answer: the answer's text, where a model gave one.
        reason: why it was rejected or failed (after `NEVER_RELEASED`: why it was not even issued).
    """

    request_id: int
    agent_id: int
    profile: str
    round: int
    intended_s: float
    deadline_ms: float
    status: Status = Status.FAILED
    reason: str = ""
    mode: Mode | None = None
    hedge: Mode | None = None
    answered: Mode | None = None
    answer: str = ""
    worker: int = -1
    lateness_ms: float = float("nan")
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    uplink_wait_ms: float = 0.0
    allocate_ms: float = 0.0
    encode_ms: float = 0.0
    handshake_ms: float = 0.0
    first_byte_ms: float = 0.0
    transfer_ms: float = 0.0
    cloud_queue_ms: float = 0.0
    cloud_prefill_ms: float = 0.0
    decode_ms: float = 0.0
    answer_ms: float = 0.0
    latency_ms: float = float("nan")
    predicted_ms: float = float("nan")
    likely: float = float("nan")
    estimate_mbps: float = float("nan")
    grant_mbps: float = float("nan")
    mean_grant_mbps: float = float("nan")
    payload_bytes: int = 0
    wire_bytes: int = 0
    quality_credited: float = 0.0
    quality_delivered: float = 0.0
    context_tokens: int = 0
    output_tokens: int = 0
    answered_tokens: int = 0
    ttft_ms: float = float("nan")
    tpot_ms: float = float("nan")
    ttft_slo_ms: float = float("nan")
    tpot_slo_ms: float = float("nan")

    @classmethod
    def of(cls, arrival: Arrival, profile: str, slo: Slo) -> Self:
        """The record of a request of which nothing is known yet but when it should start and how long it is."""
        context, output = arrival.lengths or (0, 0)
        number, agent = arrival.request_id, arrival.agent_id
        record = cls(number, agent, profile, arrival.round, arrival.intended_s, slo.deadline_ms)
        record.context_tokens, record.output_tokens = context, output
        record.ttft_slo_ms = math.nan if slo.ttft_ms is None else slo.ttft_ms
        record.tpot_slo_ms = math.nan if slo.tpot_ms is None else slo.tpot_ms
        return record

    def answered_in(self, latency_ms: float) -> None:
        """The whole answer is there."""
        self.latency_ms = latency_ms
        if math.isnan(self.ttft_ms):
            self.ttft_ms = latency_ms
        elif self.answered_tokens > 1:
            self.tpot_ms = (latency_ms - self.ttft_ms) / (self.answered_tokens - 1)

    def in_time(self, deadline_ms: float) -> bool:
        """Whether the answer kept every limit that is set."""
        late = self.latency_ms > deadline_ms or self.ttft_ms > self.ttft_slo_ms or self.tpot_ms > self.tpot_slo_ms
        return not late

    @property
    def lengths(self) -> Lengths | None:
        """Of the request; None for those of the profile."""
        return Lengths(self.context_tokens, self.output_tokens) if self.context_tokens else None

    @classmethod
    def from_entry(cls, entry: dict[str, Any]) -> Self:
        """The record of a journal entry. Raises TypeError or ValueError if it is none."""
        modes = {name: parse_mode(entry[name]) if entry.get(name) else None for name in MODE_FIELDS}
        return cls(**entry | modes)

    def entry(self) -> dict[str, Any]:
        """All fields as they are written down: modes as text, "" for none."""
        written = dict(zip(FIELDS, _values(self), strict=True))
        for name in MODE_FIELDS:
            written[name] = str(written[name] or "")
        return written


FIELDS = [field.name for field in fields(Record)]
MODE_FIELDS = ("mode", "hedge", "answered")
_values = attrgetter(*FIELDS)


def read_from(path: Path, offset: int, most: int) -> bytes:
    """At most so many bytes of a file from `offset` on; none where there is no file yet."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(most)
    except FileNotFoundError:
        return b""


class Ledger(Protocol):
    """Where an agent's requests are accounted for: each is issued at most once, and ends with one record."""

    def issue(self, arrival: Arrival) -> None:
        """The request was released."""
        ...

    def write(self, record: Record) -> None:
        """The request has ended."""
        ...


class Journal:
    """A ledger in a file, a JSON line for each entry: what is written survives any process of ours."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def issue(self, arrival: Arrival) -> None:
        self._append({"issued": arrival.request_id})

    def write(self, record: Record) -> None:
        self._append(record.entry())

    def close(self) -> None:
        self._file.close()

    def _append(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
