"""What an agent offers the allocator: every allowed mode of its profile, in bytes on the wire and ms of compute."""

from collections.abc import Sequence
from typing import Literal

from agents.edge import common_prefill_ms
from allocator.problem import ModeOption
from cloud.frames import frame_bytes
from models.profiles import ModelProfile
from netem.wire import wire_bytes

Context = Literal["resident", "sent"]


def payload_bytes(profile: ModelProfile, mode: str, context: Context) -> int:
    """Application bytes of a mode. `scout` needs the context at the cloud: with `sent`, the prompt travels with it.

    Raises:
        ValueError: the context must be sent, but the profile knows no prompt size.
    """
    size = profile.modes[mode].payload_bytes
    if not mode.startswith("scout") or context == "resident":
        return size
    if "prompt" not in profile.modes:
        raise ValueError(f"context: sent needs the size of a prompt, which profile {profile.name} doesn't have")
    return size + profile.modes["prompt"].payload_bytes


def mode_options(profile: ModelProfile, modes: Sequence[str], context: Context) -> tuple[ModeOption, ...]:
    """The options of a request whose common edge prefill is done.

    Args:
        modes: allowed modes; those that the profile lacks are left out.
    """
    present = [mode for mode in profile.modes if mode in modes]
    prefill_ms = common_prefill_ms(profile, present)
    options = []
    for mode in present:
        entry = profile.modes[mode]
        edge_ms = profile.edge_prefill_of(mode) - prefill_ms + entry.encode_ms
        local = entry.payload_bytes == 0
        options.append(
            ModeOption(
                mode=mode,
                wire_bytes=0 if local else wire_bytes(frame_bytes(payload_bytes(profile, mode, context))),
                edge_ms=edge_ms + (entry.decode_ms if local else 0.0),
                cloud_ms=0.0 if local else entry.cloud_prefill_ms + entry.decode_ms,
                quality=entry.quality,
            )
        )
    return tuple(options)
