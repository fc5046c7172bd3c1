"""What an agent offers the allocator: every allowed mode of its profile, in bytes on the wire and ms of compute."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from allocator.problem import ModeOption
from cloud.frames import frame_bytes
from kvcache.modes import PROMPT, Mode
from models.lengths import Lengths
from models.profiles import ModelProfile
from netem.wire import wire_bytes

Context = Literal["resident", "sent"]


def payload_bytes(profile: ModelProfile, mode: Mode, context: Context, lengths: Lengths | None = None) -> int:
    """Application bytes of a mode. If it needs the context at the cloud and that is sent, the prompt travels with it.

    Args:
        lengths: of the request; None for the profile's own, also in the other functions here.

    Raises:
        ValueError: the context must be sent, but the profile knows no prompt size.
    """
    size = profile.payload_of(mode, lengths)
    if not mode.needs_context or context == "resident":
        return size
    if PROMPT not in profile.modes:
        raise ValueError(f"context: sent needs the size of a prompt, which profile {profile.name} doesn't have")
    return size + profile.payload_of(PROMPT, lengths)


def mode_options(
    profile: ModelProfile,
    modes: Collection[Mode],
    context: Context,
    lengths: Lengths | None = None,
    streams: bool = False,
) -> tuple[ModeOption, ...]:
    """The options of a request whose common edge prefill is done.

    Args:
        modes: allowed modes; those that the profile lacks are left out.
        streams: whether the cloud sends the first token of an answer ahead.
    """
    present = [mode for mode in profile.modes if mode in modes]
    prefilled_ms = profile.common_prefill_ms(present, lengths)
    sizes = {
        m: 0 if m.is_local else wire_bytes(frame_bytes(payload_bytes(profile, m, context, lengths))) for m in present
    }
    return tuple(_option(profile, mode, size, prefilled_ms, lengths, streams) for mode, size in sizes.items())


@dataclass(frozen=True, slots=True)
class Offer:
    """What an agent can offer for requests of any lengths (None: the profile's own).

    Prefill comes before the mode is known, so it takes the shortest of the allowed modes' prefills; the remainder of a
    longer one is in its option's `edge_ms`.

    Attributes:
        modes: that the scenario allows and the profile has.
        streams: see `mode_options`.
    """

    profile: ModelProfile
    modes: tuple[Mode, ...]
    context: Context = "resident"
    streams: bool = False

    def options(self, lengths: Lengths | None = None) -> tuple[ModeOption, ...]:
        """Every mode, once the common prefill is done."""
        return mode_options(self.profile, self.modes, self.context, lengths, self.streams)

    def prefill_ms(self, lengths: Lengths | None = None) -> float:
        """How long the edge prefills before it asks for a mode."""
        return self.profile.common_prefill_ms(self.modes, lengths)

    def payload_bytes(self, mode: Mode, lengths: Lengths | None = None) -> int:
        """Application bytes of a mode."""
        return payload_bytes(self.profile, mode, self.context, lengths)


def payload_options(profile: ModelProfile, modes: Collection[Mode]) -> tuple[ModeOption, ...]:
    """Those of these modes that a profile has, in its order, as the papers count them.

    What crosses the uplink is the payload alone, without headers, and the edge's prefill is part of every mode.
    """
    return tuple(_option(profile, m, entry.payload_bytes, 0.0) for m, entry in profile.modes.items() if m in modes)


def _option(
    profile: ModelProfile,
    mode: Mode,
    size_bytes: int,
    prefilled_ms: float,
    lengths: Lengths | None = None,
    streams: bool = False,
) -> ModeOption:
    """Args: prefilled_ms: of the edge's prefill, what is done before the mode is chosen."""
    quality = profile.modes[mode].quality
    edge_ms = profile.edge_prefill_of(mode, lengths) - prefilled_ms + profile.encode_of(mode, lengths)
    decode_ms = profile.decode_of(mode, lengths)
    if mode.is_local:
        # The edge's own tokens are there as they are made, where it is known how many there are.
        tail_ms = decode_ms * (1 - 1 / lengths.output_tokens) if lengths else 0.0
        return ModeOption(mode, size_bytes, edge_ms + decode_ms, 0.0, quality, tail_ms=tail_ms)
    prefill_ms = profile.cloud_prefill_of(mode, lengths)
    work = profile.generation_of(mode, lengths)
    cloud_ms, tail_ms = prefill_ms + decode_ms, work.tail_ms() if streams else 0.0
    return ModeOption(
        mode, size_bytes, edge_ms, cloud_ms, quality, prefill_ms, profile.name, tail_ms=tail_ms, generation=work
    )
