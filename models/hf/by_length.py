"""How a model's times grow with lengths: measured at several contexts, fitted by the formulas of `models.lengths`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from scipy.optimize import nnls

from models.hf.decode import Decoder, Start
from models.hf.decoders import make_decoder
from models.hf.loading import LoadedModel
from models.hf.prefill import prefill
from models.hf.stopwatch import Stopwatch
from models.lengths import DeviceTimes

REPEATS = 5
DIGITS = 4


@dataclass(frozen=True, slots=True)
class LengthSample:
    """Medians of one context: its prefill, and a decode step of answers whose tokens attend to so many positions."""

    context: int
    prefill_ms: float
    attended: float
    step_ms: float


@dataclass(frozen=True, slots=True)
class FittedTimes:
    """`error` is the largest relative error of the fit, of a prefill or of a step."""

    times: DeviceTimes
    error: float


def check_contexts(contexts: Sequence[int], output_tokens: int, *models: LoadedModel) -> None:
    """Raises ValueError: fewer than two contexts, or one that a model doesn't take with its answer."""
    if len(set(contexts)) < 2:
        raise ValueError("at least two lengths of contexts are needed, to see how times grow")
    for model in models:
        if max(contexts) + output_tokens > model.max_positions or min(contexts) < 2:
            raise ValueError(f"{model.spec.name} takes contexts of 2 to {model.max_positions - output_tokens:,} tokens")


def measure_lengths(
    loaded: LoadedModel, contexts: Sequence[int], output_tokens: int, progress: Callable[[str], None]
) -> list[LengthSample]:
    """Time prefill and decoding of a request alone at each context, on random tokens; each once before, unmeasured."""
    decoder = make_decoder(loaded)
    rng = np.random.default_rng(0)
    found = []
    for context in sorted(set(contexts)):
        progress(f"{loaded.spec.name}: {context:,} tokens of context")
        laps = [_time(loaded, decoder, rng, context, output_tokens) for _ in range(REPEATS + 1)][1:]
        prefill_ms, step_ms, steps = (median(lap[i] for lap in laps) for i in range(3))
        found.append(LengthSample(context, prefill_ms, context + (steps - 1) / 2, step_ms))
    return found


def _time(
    loaded: LoadedModel, decoder: Decoder, rng: np.random.Generator, context: int, output_tokens: int
) -> tuple[float, float, int]:
    """(prefill in ms, a step in ms, steps)."""
    tokens = rng.integers(loaded.vocabulary, size=context).tolist()
    watch = Stopwatch(loaded.device)
    cache, _ = prefill(loaded, tokens)
    watch.lap()
    answer = decoder.decode([Start(cache, tokens[-1], output_tokens)])[0]
    watch.lap()
    prefill_ms, decode_ms = watch.laps_ms()
    steps = len(answer.tokens) + answer.stopped
    return prefill_ms, decode_ms / steps, steps


def fit(samples: Sequence[LengthSample]) -> FittedTimes:
    """Non-negative least squares of relative errors; with fewer than three contexts, without the square of tokens."""
    tokens = np.array([sample.context for sample in samples], float)
    powers = [tokens**0, tokens, tokens**2][: max(2, min(3, len(samples)))]
    (start, token, *pair), prefill_error = _least(powers, np.array([sample.prefill_ms for sample in samples]))
    attended = np.array([sample.attended for sample in samples])
    (step, position), step_error = _least([attended**0, attended], np.array([sample.step_ms for sample in samples]))
    times = DeviceTimes(
        prefill_ms=_round(start),
        prefill_token_ms=_round(token),
        prefill_pair_ns=_round(pair[0] * 1e6) if pair else 0.0,
        step_ms=_round(step),
        step_position_us=_round(position * 1e3),
    )
    return FittedTimes(times, max(prefill_error, step_error))


def _least(terms: Sequence[np.ndarray], measured: np.ndarray) -> tuple[list[float], float]:
    """(coefficients, the largest relative error)."""
    scaled = np.stack(terms, axis=1) / measured[:, None]
    size = np.abs(scaled).max(axis=0)  # or the solver's tolerance hides the square of tokens
    found, _ = nnls(scaled / size, np.ones(len(measured)))
    return (found / size).tolist(), float(np.abs(scaled @ (found / size) - 1).max())


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
