"""Virtual time: timers expire in order, at once, and `now_s` is exact."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from cluster.simulated.virtual_loop import VirtualLoop

T = TypeVar("T")


def virtually(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of `main()`, run on a loop of its own whose clock is virtual."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())
