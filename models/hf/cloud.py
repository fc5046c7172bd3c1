"""The cloud: the ways from what an agent sent to a `Start`, and answers to many of those at once.

- `decode_cache`: the edge's cache came, whole or pruned (modes `full`, `int8`, ...; any selection).
- `prefill_prune`: the tokens are here; prefill them all, keep the positions that came (mode `scout`; all: `prompt`).
- `prefill_kept`: the tokens are here; prefill only those at the positions that came. Cheaper, and another thing: what
  they attend to while they are prefilled is pruned too.
- `prefill_deleted`: the same, with positions counted anew, as if the other tokens had been deleted from the text.

Of a prompt, the positions of head and query are always kept. In all of these ways the cache
ends before the prompt's last token, which is fed, so that the first logits are the cloud's own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from kvcache.cache import KVCache
from models.hf.decode import Answer, Decoder, Start
from models.hf.decoders import make_decoder
from models.hf.loading import LoadedModel, ModelSpec, load_model
from models.hf.prefill import prefill
from models.hf.prompts import Prompt
from models.hf.stopwatch import Stopwatch


@dataclass(frozen=True, eq=False, slots=True)
class Prepared:
    """A start, and the time that its prefill took."""

    start: Start
    prefill_ms: float


class CloudModel:
    """One model on one cloud worker."""

    def __init__(self, loaded: LoadedModel, decoder: Decoder | None = None) -> None:
        self.loaded = loaded
        self.decoder = decoder or make_decoder(loaded)

    def decode_cache(self, cache: KVCache, last_token: int, max_new_tokens: int, one_line: bool = False) -> Prepared:
        """Decode from a received cache.

        Args:
            cache: from `Prefilled.handover`, of a model with the same fingerprint (checked by the caller).
        """
        watch = Stopwatch(self.loaded.device)
        cache = cache.to(self.loaded.device)
        watch.lap()
        return Prepared(Start(cache, last_token, max_new_tokens, one_line), *watch.laps_ms())

    def prefill_prune(
        self, prompt: Prompt, kept_context: Tensor | None, max_new_tokens: int, one_line: bool = False
    ) -> Prepared:
        """Prefill the whole prompt, then keep these positions of its context (None: all).

        Raises:
            ValueError: fewer than two tokens, too many, unknown ones, or a position outside the context.
        """
        watch = Stopwatch(self.loaded.device)
        cache, _ = prefill(self.loaded, prompt.tokens[:-1])
        if kept_context is not None:
            cache = cache.keep(prompt.positions(kept_context))
        watch.lap()
        return Prepared(Start(cache, prompt.last_token, max_new_tokens, one_line), *watch.laps_ms())

    def prefill_kept(
        self, prompt: Prompt, kept_context: Tensor, max_new_tokens: int, one_line: bool = False
    ) -> Prepared:
        """Prefill only the kept tokens, at their true positions.

        Raises:
            ValueError: as `prefill_prune`, or nothing is kept.
        """
        watch = Stopwatch(self.loaded.device)
        positions = prompt.positions(kept_context)
        kept = [prompt.tokens[p] for p in positions.tolist()]
        cache, _ = prefill(self.loaded, kept, positions, len(prompt.tokens) - 1)
        watch.lap()
        return Prepared(Start(cache, prompt.last_token, max_new_tokens, one_line), *watch.laps_ms())

    def prefill_deleted(
        self, prompt: Prompt, kept_context: Tensor, max_new_tokens: int, one_line: bool = False
    ) -> Prepared:
        """Prefill only the kept tokens, as if the others weren't in the text: positions are counted anew.

        The published evaluation prunes in this way. Raises as `prefill_kept`.
        """
        watch = Stopwatch(self.loaded.device)
        cache, _ = prefill(self.loaded, [prompt.tokens[p] for p in prompt.positions(kept_context).tolist()])
        watch.lap()
        return Prepared(Start(cache, prompt.last_token, max_new_tokens, one_line), *watch.laps_ms())

    def answers(self, starts: Sequence[Start]) -> tuple[list[Answer], float]:
        """The greedy answers, decoded as one batch, and the decode time in ms."""
        watch = Stopwatch(self.loaded.device)
        answers = self.decoder.decode(starts)
        watch.lap()
        return answers, watch.laps_ms()[0]


class CloudModels:
    """The models of one cloud worker, each loaded once."""

    def __init__(self, specs: Iterable[ModelSpec]) -> None:
        """Raises ModelError if a model can't be loaded."""
        self._models = {spec: CloudModel(load_model(spec)) for spec in dict.fromkeys(specs)}

    def __getitem__(self, spec: ModelSpec) -> CloudModel:
        return self._models[spec]

    def by_fingerprint(self, fingerprint: bytes) -> CloudModel:
        """The model that can read the caches of a fingerprint.

        Raises:
            LookupError: no model here can.
        """
        for model in self._models.values():
            if model.loaded.fingerprint == fingerprint:
                return model
        names = ", ".join(spec.name for spec in self._models)
        raise LookupError(f"a cache of model {fingerprint.hex()}, which none of {names} can read")

    def memory_bytes(self) -> int:
        """Memory of all parameters, in bytes."""
        parameters = (p for model in self._models.values() for p in model.loaded.model.parameters())
        return sum(p.numel() * p.element_size() for p in parameters)
