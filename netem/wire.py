"""Bytes on the wire of a payload, and its transfer time over an ideal link.

Rates are link-layer rates: a link of R Mbit/s (decimal) carries R*1e6 bits of Ethernet frames a second. A full frame of
1514 bytes holds 1448 bytes of payload (TCP with timestamps), so payload moves at R * 1448/1514.
"""

SEGMENT_PAYLOAD_BYTES = 1448
FRAME_OVERHEAD_BYTES = 66  # Ethernet 14 + IPv4 20 + TCP with timestamps 32
FRAME_BYTES = SEGMENT_PAYLOAD_BYTES + FRAME_OVERHEAD_BYTES

MIN_SHAPED_MBPS = 0.001  # the lowest grant or channel rate that a link accepts
MAX_SHAPED_MBPS = 10_000.0  # the highest
MAX_RATE_MBPS = 1_000_000.0  # of any channel; those above MAX_SHAPED_MBPS can only be simulated


def wire_bytes(payload_bytes: int) -> int:
    """Bytes of Ethernet frames that carry `payload_bytes` of TCP payload in full segments, without retransmissions.

    Raises ValueError for a negative size.
    """
    if payload_bytes < 0:
        raise ValueError(f"payload_bytes must not be negative, got {payload_bytes}")
    segments = -(-payload_bytes // SEGMENT_PAYLOAD_BYTES)
    return payload_bytes + segments * FRAME_OVERHEAD_BYTES


def ideal_transfer_s(payload_bytes: float, rate_mbps: float) -> float:
    """Seconds that a fluid link of `rate_mbps` needs for `payload_bytes`, with frame overhead spread evenly.

    Raises ValueError if the rate is not positive.
    """
    if rate_mbps <= 0:
        raise ValueError(f"rate_mbps must be positive, got {rate_mbps}")
    return payload_bytes * 8 / (rate_mbps * 1e6 * SEGMENT_PAYLOAD_BYTES / FRAME_BYTES)
