"""What an agent offers the allocator: every allowed mode of its profile, in bytes on the wire and ms of compute."""

from collections.abc import Collection
from typing import Literal

from agents.edge import common_prefill_ms
from allocator.problem import ModeOption
from cloud.frames import frame_bytes
from kvcache.modes import PROMPT, Mode
from models.profiles import ModelProfile
from netem.wire import wire_bytes

Context = Literal["resident", "sent"]


def payload_bytes(profile: ModelProfile, mode: Mode, context: Context) -> int:
    """Application bytes of a mode. If it needs the context at the cloud and that is sent, the prompt travels with it.

    Raises:
        ValueError: the context must be sent, but the profile knows no prompt size.
    """
    size = profile.modes[mode].payload_bytes
    if not mode.needs_context or context == "resident":
        return size
    if PROMPT not in profile.modes:
        raise ValueError(f"context: sent needs the size of a prompt, which profile {profile.name} doesn't have")
    return size + profile.modes[PROMPT].payload_bytes


def mode_options(profile: ModelProfile, modes: Collection[Mode], context: Context) -> tuple[ModeOption, ...]:
    """The options of a request whose common edge prefill is done.

    Args:
        modes: allowed modes; those that the profile lacks are left out.
    """
    present = [mode for mode in profile.modes if mode in modes]
    prefilled_ms = common_prefill_ms(profile, present)
    sizes = {m: 0 if m.is_local else wire_bytes(frame_bytes(payload_bytes(profile, m, context))) for m in present}
    return tuple(_option(profile, mode, size, prefilled_ms) for mode, size in sizes.items())


def payload_options(profile: ModelProfile, modes: Collection[Mode]) -> tuple[ModeOption, ...]:
    """Those of these modes that a profile has, in its order, as the papers count them.

    What crosses the uplink is the payload alone, without headers, and the edge's prefill is part of every mode.
    """
    return tuple(_option(profile, m, entry.payload_bytes, 0.0) for m, entry in profile.modes.items() if m in modes)


def _option(profile: ModelProfile, mode: Mode, size_bytes: int, prefilled_ms: float) -> ModeOption:
    """Args: prefilled_ms: of the edge's prefill, what is done before the mode is chosen."""
    entry = profile.modes[mode]
    edge_ms = profile.edge_prefill_of(mode) - prefilled_ms + entry.encode_ms
    if mode.is_local:
        return ModeOption(mode, size_bytes, edge_ms + entry.decode_ms, 0.0, entry.quality)
    cloud_ms = entry.cloud_prefill_ms + entry.decode_ms
    return ModeOption(mode, size_bytes, edge_ms, cloud_ms, entry.quality, entry.cloud_prefill_ms, profile.name)
