"""The protocol of the relay and of those who connect to it, over TCP.

Whoever connects sends a hello of 48 bytes at once: magic, version, role, worker, agent, a reserved field, the run's
token. The answer is one byte: `+`, or `-` with a length (2 bytes) and a reason in ASCII; a wrong token is answered by
closing. What follows depends on the role:

    AGENT    the bytes of an emulated connection from `agent` to `worker`, both ways
    WORKER   nothing until a connection to `worker` is there: then the byte `!`, and from then on its bytes, both ways
    STATION  requests of one byte each: `t` is answered with the station's clock; `u` and a length with how fast so
             many bytes, which follow, came in; `d` and a length with so many bytes; `r` and a length is a report, which
             has no answer. `worker` is ANY for an agents' host, and `agent` is then its first one.
    STATUS   answered with a length and a JSON document: what was refused and carried, and the last reports

Lengths have 4 bytes, times are doubles; all is little-endian. The token keeps out whoever isn't of this run; it is sent
as it is, like everything else, so it protects from nobody who can listen on the network.
"""

import hmac
import secrets
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

MAGIC = b"SCRL"
VERSION = 1
TOKEN_BYTES = 32
HELLO = struct.Struct(f"<4sBBHII{TOKEN_BYTES}s")
LENGTH = struct.Struct("<I")
REASON = struct.Struct("<H")
CLOCK = struct.Struct("<d")
RATE = struct.Struct("<dd")
OK, NO, GO = b"+", b"-", b"!"
ANY = 0xFFFF
MAX_PROBE_BYTES = 2**26
MAX_REPORT_BYTES = 4096
MAX_STATUS_BYTES = 2**24
LARGEST_PIECE = 2**18


class Role(IntEnum):
    """What a connection to the relay is for."""

    AGENT = 1
    WORKER = 2
    STATION = 3
    STATUS = 4


class RelayRefused(ConnectionError):
    """The relay refuses a connection; the message is its reason."""


class HelloError(ValueError):
    """What came isn't a hello of this run; the message is one word, for counters."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What a connection begins with."""

    role: Role
    worker: int = ANY
    agent: int = 0

    def pack(self, token: bytes) -> bytes:
        """48 bytes."""
        return HELLO.pack(MAGIC, VERSION, self.role, self.worker, self.agent, 0, token)

    @classmethod
    def unpack(cls, raw: bytes, token: bytes) -> Self:
        """Raises HelloError: `magic`, `version`, `token` or `role`."""
        magic, version, role, worker, agent, _, given = HELLO.unpack(raw)
        if magic != MAGIC:
            raise HelloError("magic")
        if version != VERSION:
            raise HelloError("version")
        if not hmac.compare_digest(given, token):
            raise HelloError("token")
        try:
            return cls(Role(role), worker, agent)
        except ValueError:
            raise HelloError("role") from None


def new_token() -> bytes:
    """A token that nobody can guess."""
    return secrets.token_bytes(TOKEN_BYTES)
