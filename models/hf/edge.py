"""The edge model: prefill a prompt and score its context, then hand over the cache or answer locally."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcache.cache import KVCache
from kvcache.selection import Selection
from models.hf.attention import Scoring, collecting
from models.hf.decode import Answer, Decoder, Start
from models.hf.decoders import make_decoder
from models.hf.loading import LoadedModel
from models.hf.prefill import prefill
from models.hf.prompts import Prompt
from models.hf.stopwatch import Stopwatch


@dataclass(frozen=True, eq=False, slots=True)
class Prefilled:
    """A prompt after prefill.

    Attributes:
        cache: of the whole prompt: head, context, query. A handed-over cache excludes the prompt's last token: the
            receiver feeds it, and so needs no logits.
        scores: float32 [context] on the model's device, by selection.
        first_token: the answer's first token by this model.
        prefill_ms, score_ms: durations of the forward pass (with recording for scores) and of scoring after it.
    """

    prompt: Prompt
    cache: KVCache
    scores: dict[str, Tensor]
    first_token: int
    prefill_ms: float
    score_ms: float

    @property
    def context(self) -> int:
        return self.prompt.context

    @property
    def query(self) -> int:
        return self.prompt.query

    @property
    def last_token(self) -> int:
        return self.prompt.last_token

    def handover(self, kept_context: Tensor | None = None) -> KVCache:
        """The cache without the prompt's last token, pruned, for the cloud to decode from.

        A sender needn't prune: `kvcache.wire.encode` gathers `positions(kept_context)` itself.

        Args:
            kept_context: int64, ascending positions of the context, by a selection; None keeps all. Head and query are
                always kept.

        Raises:
            ValueError: a position is outside the context.
        """
        last = len(self.prompt.tokens) - 1
        layers = tuple((keys[:, :last], values[:, :last]) for keys, values in self.cache.layers)
        cache = KVCache(layers, self.cache.positions[:last], last)
        positions = self.positions(kept_context)
        return cache if positions is None else cache.keep(positions)

    def positions(self, kept_context: Tensor | None) -> Tensor | None:
        """The positions that a cache handed over keeps; None for all. Arguments and errors as for `handover`."""
        return None if kept_context is None else self.prompt.positions(kept_context)


class EdgeModel:
    """One model on one edge agent."""

    def __init__(self, loaded: LoadedModel, decoder: Decoder | None = None) -> None:
        self.loaded = loaded
        self.decoder = decoder or make_decoder(loaded)

    @torch.no_grad()
    def prefill(self, prompt: Prompt, selections: Sequence[Selection] = ()) -> Prefilled:
        """Prefill a prompt, and score its context.

        Raises:
            ValueError: the prompt is empty, too long, or has unknown tokens; or a selection needs a query.
        """
        scoring = Scoring(selections, prompt.head, prompt.context, prompt.query, self.loaded.geometry.layers)
        watch = Stopwatch(self.loaded.device)
        with collecting(scoring):
            cache, logits = prefill(self.loaded, prompt.tokens)
        first_token = logits.argmax()
        watch.lap()
        scores = scoring.scores()
        watch.lap()
        prefill_ms, score_ms = watch.laps_ms()
        return Prefilled(prompt, cache, scores, int(first_token), prefill_ms, score_ms)

    def answer(self, prefilled: Prefilled, max_new_tokens: int, one_line: bool = False) -> Answer:
        """The greedy answer on the edge (mode `local`)."""
        first = prefilled.first_token
        if first in self.loaded.stop_tokens:
            return Answer((), True)
        if max_new_tokens == 1:
            return Answer((first,), False)
        start = Start(prefilled.cache, first, max_new_tokens - 1, one_line, begun=True)
        rest = self.decoder.decode([start])[0]
        return Answer((first, *rest.tokens), rest.stopped)
