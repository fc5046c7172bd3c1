"""Every request as its prompt."""

from allocator.policies.static import Static
from kvcache.modes import PROMPT


class PromptOnly(Static):
    """`prompt` for every request on an equal share: the cloud does all the work."""

    name = "prompt_only"

    def __init__(self) -> None:
        self.mode = PROMPT
