"""Allocation policies, one a file. Add yours here and the policy tests run on it.

Policies of other packages need no change here: name them `module:Class`, which imports the module, or let the package
declare an entry point in the group `scout.policies`.
"""

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points

from allocator.policies.base import Policy
from allocator.policies.deadline import Deadline
from allocator.policies.equal import Equal
from allocator.policies.greedy import Greedy
from allocator.policies.local_only import LocalOnly
from allocator.policies.model_aware import ModelAware
from allocator.policies.optimal import Optimal
from allocator.policies.prompt_only import PromptOnly
from allocator.policies.quality_max import QualityMax
from allocator.policies.scout_only import ScoutOnly
from allocator.policies.static import Static
from kvcache.modes import parse_mode

POLICIES: dict[str, Callable[[], Policy]] = {
    policy.name: policy
    for policy in (
        Equal,
        ModelAware,
        Deadline,
        Optimal,
        Greedy,
        LocalOnly,
        PromptOnly,
        ScoutOnly,
        QualityMax,
    )
}
STATIC_PREFIX = "static_"
RENAMED = {
    "clairvoyant": "it knows the present rate and no future, so it is called rate_oracle now, and `scout compare` adds "
    "it by itself; in a scenario it is {policy: deadline, label: rate_oracle, estimator: {kind: oracle}}"
}
ENTRY_POINTS = "scout.policies"


def policy_names() -> str:
    """What `make_policy` takes, for messages."""
    others = sorted(entry.name for entry in entry_points(group=ENTRY_POINTS) if entry.name not in POLICIES)
    return ", ".join([*POLICIES, *others, f"{STATIC_PREFIX}<mode>", "<module>:<class>"])


def make_policy(name: str) -> Policy:
    """A policy by name: of the registry, `static_<mode>`, another package's entry point, or `module:Class`.

    Raises:
        ValueError: no such policy or mode, or not a policy; the message says what there is.
    """
    if name in RENAMED:
        raise ValueError(f"no allocator {name!r}: {RENAMED[name]}")
    if name in POLICIES:
        return POLICIES[name]()
    if name.startswith(STATIC_PREFIX) and len(name) > len(STATIC_PREFIX):
        return Static(parse_mode(name.removeprefix(STATIC_PREFIX)))
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        return _imported(name, entry.value)
    if ":" in name:
        return _imported(name, name)
    raise ValueError(f"no allocator {name!r}; there are {policy_names()}")


def _imported(name: str, path: str) -> Policy:
    """The policy at `module:Class`. Importing runs the module's code, as whoever names it here wants.

    Raises:
        ValueError: there is no such module or class, or it isn't a policy.
    """
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:  # ValueError: an empty name
        raise ValueError(f"allocator {name!r}: can't import module {module_name!r} ({error})") from None
    make = getattr(module, class_name, None)
    if not isinstance(make, type):
        raise ValueError(f"allocator {name!r}: module {module_name!r} has no class {class_name!r}")
    try:
        policy = make()
    except TypeError as error:
        raise ValueError(f"allocator {name!r}: {class_name} must be made without arguments ({error})") from None
    missing = [part for part in ("name", "solve", "static_shares", "minimum_rate") if not hasattr(policy, part)]
    if missing:
        raise ValueError(f"allocator {name!r}: {class_name} is not a policy, it has no {' and no '.join(missing)}")
    made: Policy = policy
    return made


__all__ = ["POLICIES", "Policy", "make_policy", "policy_names"]
