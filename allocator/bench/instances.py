"""Random allocation problems in the ranges of the shipped profiles, for the bench and the tests."""

import numpy as np
from numpy.typing import NDArray

from allocator.problem import AgentInfo, ModeOption, OnInfeasible, Problem, Request, Transfer
from kvcache.modes import LOCAL, PROMPT, SCOUT, Mode, parse_mode

# Models as in the profiles: bytes of the full cache, decode ms, prefill ms in the cloud.
_MODELS = ((9.7e6, 167, 18), (23e6, 587, 22), (33e6, 331, 57))
# KV modes: share of the full cache, encode ms, quality.
_FULL, _INT8, _MIXED, _INT4 = map(parse_mode, ("full", "int8", "mixed_int4", "int4"))
_KV_MODES = {_FULL: (1.0, 0, 100), _INT8: (0.508, 3, 99.6), _MIXED: (0.283, 3, 97), _INT4: (0.258, 3, 93)}
_HEADERS = 1514 / 1448


def draw_problem(rng: np.random.Generator, requests: int, cloud: bool) -> Problem:
    """A problem with this many requests; `cloud` models cloud time.

    Drawn are kinds of agents, with and without `local`, `prompt` and `scout`; deadlines, in common or one for each
    request; the uplink, from a tenth of the rate that int4 needs for all requests to more than full caches need; cloud
    time, from a third to twice the work; and in some problems transfers in flight, announced requests or weights.
    """
    small_modes = rng.random(3) < (0.5, 0.5, 0.6)
    kinds = [_draw_options(rng, small_modes) for _ in range(rng.integers(1, 5))]
    kind = rng.integers(len(kinds), size=requests)
    base_ms = rng.uniform(1000, 8000)
    common = rng.random() < 0.5
    time_left_ms = np.full(requests, base_ms) if common else base_ms * rng.uniform(0.5, 1.5, requests)
    starts_in_ms = np.zeros(requests)
    if rng.random() < 0.25:
        starts_in_ms = np.where(rng.random(requests) < 0.3, rng.uniform(0, 500, requests), 0.0)
    heavy = rng.random() < 0.25
    weights = rng.choice((1.0, 2.0, 4.0), requests) if heavy else np.ones(requests)
    asked = tuple(
        Request(
            i,
            i,
            float(starts_in_ms[i] + time_left_ms[i]) / 1e3,
            kinds[kind[i]],
            float(weights[i]),
            float(starts_in_ms[i]) / 1e3,
        )
        for i in range(requests)
    )
    in_flight = int(rng.integers(0, requests // 4 + 1)) if rng.random() < 0.5 else 0
    transfers = tuple(_draw_transfer(rng, requests + i, base_ms) for i in range(in_flight))
    int4, full = (_summed_mbps(asked, mode) for mode in (_INT4, _FULL))
    least, most = 0.1 * int4, 1.5 * full + sum(transfer.least_mbps(0.0) for transfer in transfers)
    workers_free_s = None
    if cloud:
        work_ms = sum(request.options[0].cloud_ms for request in asked)
        workers = max(1, round(work_ms / base_ms * np.exp(rng.uniform(np.log(0.33), np.log(2)))))
        busy_ms = rng.uniform(0, 0.5 * base_ms, workers) if rng.random() < 0.5 else np.zeros(workers)
        workers_free_s = tuple((busy_ms / 1e3).tolist())
    on_infeasible: OnInfeasible = "local" if rng.random() < 0.5 else "late"
    return Problem(
        uplink_mbps=float(np.exp(rng.uniform(np.log(least), np.log(most)))),
        agents=tuple(AgentInfo(i, 10_000_000) for i in range(requests + in_flight)),
        requests=asked,
        transfers=transfers,
        workers_free_s=workers_free_s,
        on_infeasible=on_infeasible,
    )


def _draw_transfer(rng: np.random.Generator, number: int, base_ms: float) -> Transfer:
    bytes_left, due_s = float(rng.uniform(1e5, 5e6)), float(base_ms * rng.uniform(0.1, 0.9)) / 1e3
    return Transfer(number, number, bytes_left, due_s, late_s=due_s)


def _draw_options(rng: np.random.Generator, small_modes: NDArray[np.bool_]) -> tuple[ModeOption, ...]:
    """A profile near one of the shipped ones; `small_modes` says whether it has prompt, scout and local."""
    published_bytes, published_ms, prefill_ms = _MODELS[rng.integers(len(_MODELS))]
    kv_bytes, decode_ms = published_bytes * rng.uniform(0.8, 1.25), published_ms * rng.uniform(0.8, 1.25)
    options = [
        ModeOption(mode, int(share * kv_bytes * _HEADERS), encode_ms, decode_ms, quality + rng.uniform(-8, 8))
        for mode, (share, encode_ms, quality) in _KV_MODES.items()
    ]
    prompt, scout, local = small_modes
    if prompt:
        size = int(rng.integers(700, 5000))
        options.append(ModeOption(PROMPT, size, 0, prefill_ms + decode_ms, rng.uniform(92, 104)))
    if scout:
        cloud_ms = rng.uniform(1, 2) * decode_ms + prefill_ms
        options.append(ModeOption(SCOUT, 460, rng.uniform(0, 10), cloud_ms, rng.uniform(88, 98)))
    if local:
        options.append(ModeOption(LOCAL, 0, decode_ms, 0, rng.uniform(55, 80)))
    return tuple(options)


def _summed_mbps(requests: tuple[Request, ...], mode: Mode) -> float:
    """Sum of the least rates in one mode, of the requests that can meet their deadline in it."""
    needs = [o.least_mbps((r.due_s - r.starts_s) * 1e3) for r in requests for o in r.options if o.mode == mode]
    return sum(need for need in needs if need < float("inf")) or 1.0
