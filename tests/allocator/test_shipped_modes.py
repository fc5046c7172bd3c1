"""Every mode of every shipped profile through hedging and through every policy."""

import pytest

from agents.offer import Context, mode_options
from allocator.online.hedging import solve_hedged
from allocator.policies import POLICIES, make_policy
from allocator.policies.static import Static
from allocator.problem import AgentInfo, ModeOption, Problem, Request
from kvcache.modes import PROMPT
from models.profiles import ModelProfile, builtin_files, load_file

PROFILES = [profile for path in builtin_files().values() for profile in load_file(path).values()]
DOUBT_MBPS = [2.0, 200.0, 200.0, 200.0]


def asked(profile: ModelProfile, options: tuple[ModeOption, ...]) -> Problem:
    return Problem(100.0, (AgentInfo(0, profile.kv_bytes),), (Request(1, 0, 5.0, options),))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_only_what_is_small_goes_ahead_and_only_of_a_cache(profile: ModelProfile) -> None:
    """Closes D3: commit 06bf9f5 took `scout@0.25` for a cache and sent a larger prompt ahead of it."""
    options = {option.mode: option for option in mode_options(profile, profile.modes, "resident")}
    caches = 0
    for mode in profile.modes:
        solution, hedges = solve_hedged(make_policy(f"static_{mode}"), asked(profile, (*options.values(),)), DOUBT_MBPS)
        assert str(solution.choices[1].option.mode) == str(mode)
        if str(mode).startswith(("prompt", "scout", "local")):
            assert hedges == {}, f"nothing goes ahead of {mode}"
        else:
            caches += 1
            assert str(hedges[1].mode).startswith(("prompt", "scout"))
            assert hedges[1].wire_bytes < 0.1 * options[mode].wire_bytes
    assert caches >= 3


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_every_policy_answers_with_an_offered_mode(profile: ModelProfile, name: str) -> None:
    policy = make_policy(name)
    contexts: list[Context] = ["resident", "sent"] if PROMPT in profile.modes else ["resident"]
    for context in contexts:
        options = mode_options(profile, profile.modes, context)
        if isinstance(policy, Static) and policy.mode not in profile.modes:
            with pytest.raises(ValueError, match=f"no mode '{policy.mode}', only full"):
                policy.solve(asked(profile, options))
            continue
        for offered in (options, *((option,) for option in options if not isinstance(policy, Static))):
            assert policy.solve(asked(profile, offered)).choices[1].option in offered
