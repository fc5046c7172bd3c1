"""What one request asks of a worker that batches by iteration: positions, tokens, and what each of them costs."""

from collections.abc import Hashable
from typing import NamedTuple


class Generation(NamedTuple):
    """One sequence. Alone, it takes exactly the times that its profile states.

    Attributes:
        decoder: sequences of one decoder share a step; those of several are decoded one decoder after the other.
        kept: positions that its first token attends to, rounded up: what is prefilled, and held in KV memory.
        output_tokens: of its answer, at least 1.
        received: whether its positions come with the request, so that nothing is prefilled.
        attended: as `kept`, not rounded.
        start_ms, token_ms, pair_ms: of a prefill: once, for each position, and times the square of the positions.
        step_ms: of a decode step, whatever the number of sequences in it.
        position_ms: of a decode step, for each position that it attends to.
    """

    decoder: Hashable
    kept: int
    output_tokens: int
    received: bool
    attended: float
    start_ms: float
    token_ms: float
    pair_ms: float
    step_ms: float
    position_ms: float

    def prefill_ms(self, done: int, until: int) -> float:
        """Time in ms to prefill positions `done` to `until`, without `start_ms`."""
        return self.token_ms * (until - done) + self.pair_ms * (until * until - done * done)

    def positions_ms(self, generated: int = 0) -> float:
        """Time in ms that the positions cost which the tokens after the first `generated` ones attend to."""
        left = self.output_tokens - generated
        return self.position_ms * (left * (self.attended + generated) + left * (left - 1) / 2)

    def before_decoding_ms(self, generated: int = 0) -> float:
        """Time in ms of its prefill, alone; of the generated tokens too, where those were lost with its KV memory."""
        done, until = self.kept if self.received else 0, self.kept + generated
        return self.start_ms + self.prefill_ms(done, until) if done < until else 0.0

    def alone_ms(self, generated: int = 0) -> float:
        """Time in ms of the rest of it on a worker that serves nothing else."""
        steps_ms = self.step_ms * (self.output_tokens - generated)
        return self.before_decoding_ms(generated) + steps_ms + self.positions_ms(generated)

    def tail_ms(self) -> float:
        """Time in ms from its first token to its last, alone."""
        return self.step_ms * (self.output_tokens - 1) + self.positions_ms(1)

    def added_ms(self, slots: int) -> float:
        """Time in ms that it adds to a worker with so many slots: it shares its decode steps with others."""
        steps_ms = self.step_ms * self.output_tokens / slots
        return self.before_decoding_ms() + steps_ms + self.positions_ms()
