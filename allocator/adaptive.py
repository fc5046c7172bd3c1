"""The adaptive mode choice of the Scout paper: given a share of the uplink, which mode?"""

from collections.abc import Sequence

from allocator.problem import ModeOption, smallest_option


def adaptive_mode(options: Sequence[ModeOption], mbps: float, time_left_ms: float) -> ModeOption:
    """The best mode that meets the deadline on a share of `mbps`.

    Modes are tried by descending quality, and the first whose predicted latency fits is taken. If none fits, the one
    that sends least, as published: the request will be late, and should hurt others least.

    Raises:
        ValueError: no options.
    """
    if not options:
        raise ValueError("a request needs at least one mode")
    for option in sorted(options, key=lambda o: (-o.quality, o.wire_bytes)):
        if option.meets(mbps, time_left_ms):
            return option
    return smallest_option(options)
