"""Just enough rtnetlink: frame requests, send a batch in one system call, collect the acknowledgements.

General libraries pay about 0.5 ms a request and several descriptors a socket. A run holds one socket for every agent
and changes the grants of all agents at every decision, so these are written by hand: about 20 µs and one descriptor.
Layouts follow `linux/netlink.h`, `linux/rtnetlink.h`; integers are in host byte order unless marked.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

NLM_F_REQUEST, NLM_F_ACK, NLM_F_ECHO = 0x1, 0x4, 0x8
NLM_F_EXCL, NLM_F_CREATE = 0x200, 0x400
CREATE = NLM_F_CREATE | NLM_F_EXCL
NLM_F_DUMP = 0x300
NLM_F_ACK_TLVS = 0x200

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLMSGERR_ATTR_MSG = 1
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK = 270, 10, 11

# An acknowledgement costs the receive buffer about 1 KB of kernel memory, so a batch must stay well under 200.
BATCH_MESSAGES = 64
RECEIVE_BYTES = 1 << 16

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type


class NetlinkError(OSError):
    """The kernel refused a request; `errno` is the kernel's, the text holds its explanation where it gave one."""


class Message(NamedTuple):
    """One request: an `RTM_*` type, flags besides REQUEST, and a body (fixed struct, then attributes)."""

    kind: int
    flags: int
    body: bytes


def attribute(kind: int, value: bytes) -> bytes:
    """A type-length-value triple, padded to four bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """An unsigned 32-bit attribute."""
    return attribute(kind, struct.pack("=I", value))


def attributes(data: bytes) -> dict[int, bytes]:
    """Attribute type -> value. Of a repeated type the last one stays."""
    found = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


class Netlink:
    """A route netlink socket; it speaks for the network namespace in which the calling thread was when it was made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def request(self, messages: Sequence[Message]) -> None:
        """Apply `messages` in order. Raises NetlinkError for the first one refused; the rest of its batch still ran."""
        for start in range(0, len(messages), BATCH_MESSAGES):
            batch = messages[start : start + BATCH_MESSAGES]
            self._send(batch, NLM_F_ACK)
            refused: NetlinkError | None = None
            acknowledged = 0
            while acknowledged < len(batch):
                for kind, flags, body in self._receive():
                    if kind == NLMSG_ERROR:
                        acknowledged += 1
                        refused = refused or _refusal(flags, body)
            if refused:
                raise refused

    def get(self, message: Message) -> bytes:
        """The body of the one answer to `message`. Raises NetlinkError."""
        self._send([message], NLM_F_ECHO)  # traffic control answers only those who ask for the echo
        kind, flags, body = next(self._receive())
        if kind == NLMSG_ERROR:
            raise _refusal(flags, body) or NetlinkError(errno.EPROTO, "netlink acknowledged a question without answer")
        return body

    def dump(self, message: Message) -> list[bytes]:
        """The bodies of all answers to a dump request. Raises NetlinkError."""
        self._send([message], NLM_F_DUMP)
        bodies: list[bytes] = []
        while True:
            for kind, flags, body in self._receive():
                if kind == NLMSG_DONE:
                    return bodies
                if kind == NLMSG_ERROR:
                    raise _refusal(flags, body) or NetlinkError(errno.EPROTO, "netlink ended a dump early")
                bodies.append(body)

    def _send(self, batch: Sequence[Message], flags: int) -> None:
        framed = []
        for message in batch:
            self._sequence += 1
            length = _HEADER.size + len(message.body)
            header = _HEADER.pack(length, message.kind, message.flags | flags | NLM_F_REQUEST, self._sequence, 0)
            framed.append(header + message.body + b"\0" * (-length % 4))
        self._socket.send(b"".join(framed))

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        data = self._socket.recv(RECEIVE_BYTES)
        offset = 0
        while offset < len(data):
            length, kind, flags, _, _ = _HEADER.unpack_from(data, offset)
            yield kind, flags, data[offset + _HEADER.size : offset + length]
            offset += (length + 3) & ~3


def _refusal(flags: int, body: bytes) -> NetlinkError | None:
    """The error in an NLMSG_ERROR body; None if it is an acknowledgement (error 0)."""
    (code,) = struct.unpack_from("=i", body)
    if code == 0:
        return None
    explanation = os.strerror(-code)
    if flags & NLM_F_ACK_TLVS:
        detail = attributes(body[4 + _HEADER.size :]).get(NLMSGERR_ATTR_MSG)
        if detail:
            explanation += f" ({detail.rstrip(bytes(1)).decode(errors='replace')})"
    return NetlinkError(-code, explanation)
