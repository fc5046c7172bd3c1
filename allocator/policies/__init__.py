"""Allocation policies, one a file. Add yours here and the policy tests run on it."""

from collections.abc import Callable

from allocator.policies.base import Policy
from allocator.policies.equal import Equal
from allocator.policies.model_aware import ModelAware
from allocator.policies.static import Static

POLICIES: dict[str, Callable[[], Policy]] = {policy.name: policy for policy in (Equal, ModelAware)}
STATIC_PREFIX = "static_"


def policy_names() -> str:
    """What `make_policy` takes, for messages."""
    return ", ".join([*POLICIES, f"{STATIC_PREFIX}<mode>"])


def make_policy(name: str) -> Policy:
    """A policy by name: one of the registry, or `static_<mode>`.

    Raises:
        ValueError: no such policy; the message lists what there is.
    """
    if name in POLICIES:
        return POLICIES[name]()
    if name.startswith(STATIC_PREFIX) and len(name) > len(STATIC_PREFIX):
        return Static(name.removeprefix(STATIC_PREFIX))
    raise ValueError(f"no allocator {name!r}; there are {policy_names()}")


__all__ = ["POLICIES", "Policy", "make_policy", "policy_names"]
