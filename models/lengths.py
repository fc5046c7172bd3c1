"""What a request's lengths are, and how a model's times grow with them."""

from typing import Annotated, NamedTuple, Self

from pydantic import Field, model_validator

from configs.settings import Settings

MAX_TOKENS = 10_000_000
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class Lengths(NamedTuple):
    """Tokens of a request's context (everything that is prefilled), and of its answer; both at least 1."""

    context_tokens: int
    output_tokens: int


class DeviceTimes(Settings):
    """Times of one model on one device: a prefill grows linearly and by pairs of positions, a decode step by the
    positions that it attends to (the terms of a transformer's cost, as in Vidur, Agrawal et al., MLSys 2024).
    """

    prefill_ms: float = Field(default=0.0, ge=0, description="of any prefill")
    prefill_token_ms: float = Field(ge=0, description="for each token of the context")
    prefill_pair_ns: float = Field(default=0.0, ge=0, description="for each pair of tokens: times tokens squared")
    step_ms: float = Field(ge=0, description="of a decode step, without what its positions cost")
    step_position_us: float = Field(default=0.0, ge=0, description="for each position that a request attends to")

    def prefill_of(self, tokens: int) -> float:
        """Time in ms to prefill so many tokens."""
        return self.prefill_ms + self.prefill_token_ms * tokens + self.prefill_pair_ns * 1e-6 * tokens * tokens

    def decode_of(self, attended: float, output_tokens: int) -> float:
        """Ms to decode an answer alone: its first token attends to `attended` positions, each next to one more."""
        positions = output_tokens * attended + output_tokens * (output_tokens - 1) / 2
        return self.step_ms * output_tokens + self.step_position_us * 1e-3 * positions


class LengthTimes(Settings):
    """A profile as a function of lengths: times by formula, bytes in proportion to the context."""

    contexts: tuple[Tokens, Tokens] = Field(description="shortest and longest context that was measured, in tokens")
    error: float | None = Field(default=None, ge=0, description="largest relative error of the formulas, as measured")
    edge: DeviceTimes = Field(description="the edge's model on the edge")
    cloud: DeviceTimes = Field(description="the model that answers in the cloud")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.contexts[0] > self.contexts[1]:
            raise ValueError(f"contexts from {self.contexts[0]} to {self.contexts[1]}: the shortest comes first")
        return self
