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
from models.hf.stopwatch import Stopwatch


@dataclass(frozen=True, eq=False, slots=True)
class Prefilled:
    """A prompt after prefill.

    Attributes:
        cache: of the whole prompt, context then query.
        context, query: tokens of each.
        scores: float32 [context] on the model's device, by selection.
        last_token: the prompt's last token. A handed-over cache excludes it: the receiver feeds it, and so needs no
            logits.
        first_token: the answer's first token by this model.
        prefill_ms, score_ms: durations of the forward pass (with recording for scores) and of scoring after it.
    """

    cache: KVCache
    context: int
    query: int
    scores: dict[str, Tensor]
    last_token: int
    first_token: int
    prefill_ms: float
    score_ms: float

    def handover(self, kept_context: Tensor | None = None) -> KVCache:
        """The cache without the prompt's last position, whole or pruned, for the cloud to decode from.

        A sender needn't prune: `kvcache.wire.encode` gathers `positions(kept_context)` itself.

        Args:
            kept_context: int64, ascending positions of the context, by a selection; None keeps all. The query is
                always kept.

        Raises:
            ValueError: a position is outside the context.
        """
        last = self.context + self.query - 1
        layers = tuple((keys[:, :last], values[:, :last]) for keys, values in self.cache.layers)
        cache = KVCache(layers, self.cache.positions[:last], last)
        positions = self.positions(kept_context)
        return cache if positions is None else cache.keep(positions)

    def positions(self, kept_context: Tensor | None) -> Tensor | None:
        """The positions that a cache handed over keeps; None for all. Arguments and errors as for `handover`."""
        return None if kept_context is None else with_query(kept_context, self.context, self.query)


def with_query(kept_context: Tensor, context: int, query: int) -> Tensor:
    """Append the query's positions to kept ones of the context, except the prompt's last, which is fed as a token.

    Raises:
        ValueError: a position is outside the context.
    """
    if len(kept_context) and not 0 <= int(kept_context.min()) <= int(kept_context.max()) < context:
        raise ValueError(f"positions outside the context of {context}")
    kept_context = kept_context[kept_context < context + query - 1]  # without a query, the context's last token is fed
    return torch.cat((kept_context, torch.arange(context, context + query - 1)))


class EdgeModel:
    """One model on one edge agent."""

    def __init__(self, loaded: LoadedModel, decoder: Decoder | None = None) -> None:
        self.loaded = loaded
        self.decoder = decoder or make_decoder(loaded)

    @torch.no_grad()
    def prefill(
        self, context_ids: Sequence[int], query_ids: Sequence[int], selections: Sequence[Selection] = ()
    ) -> Prefilled:
        """Prefill context and query as one prompt.

        Raises:
            ValueError: the prompt is empty, too long, or has unknown tokens; or a selection needs a query.
        """
        context, query = len(context_ids), len(query_ids)
        tokens = [*context_ids, *query_ids]
        scoring = Scoring(selections, context, query, self.loaded.geometry.layers)
        watch = Stopwatch(self.loaded.device)
        with collecting(scoring):
            cache, logits = prefill(self.loaded, tokens)
        first_token = logits.argmax()
        watch.lap()
        scores = scoring.scores()
        watch.lap()
        prefill_ms, score_ms = watch.laps_ms()
        return Prefilled(cache, context, query, scores, tokens[-1], int(first_token), prefill_ms, score_ms)

    def answer(self, prefilled: Prefilled, max_new_tokens: int) -> Answer:
        """The greedy answer on the edge (mode `local`)."""
        if prefilled.first_token in self.loaded.stop_tokens:
            return Answer((), True)
        if max_new_tokens == 1:
            return Answer((prefilled.first_token,), False)
        rest = self.decoder.decode([Start(prefilled.cache, prefilled.first_token, max_new_tokens - 1)])[0]
        return Answer((prefilled.first_token, *rest.tokens), rest.stopped)
