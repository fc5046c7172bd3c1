"""Outcomes of studies, made up."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from reports.machine import describe_machine
from reports.schema import StudyFacts


def outcomes_of(cases: Sequence[tuple[str, float, float]], count: int) -> pd.DataFrame:
    """Of each case, by how much F1 and NLL are above the first case's; two examples on each context."""
    rng = np.random.default_rng(0)
    f1, nll = rng.uniform(0.3, 0.9, count), rng.gamma(2.0, 1.0, count)
    rows = []
    for case, more_f1, more_nll in cases:
        noise = 0.02 * rng.normal(size=(2, count))
        for n in range(count):
            rows.append(
                {
                    "example": f"q{n}",
                    "context": n // 2,
                    "length": 0,
                    "case": case,
                    "side": "edge",
                    "f1": f1[n] + more_f1 + (noise[0, n] if case != "full" else 0),
                    "exact": 0.0,
                    "nll": nll[n] + more_nll + (noise[1, n] if case != "full" else 0),
                    "answer_tokens": 3,
                    "context_tokens": 100,
                    "kept": 100,
                    "payload_bytes": 1000,
                    "overlap": -1.0,
                    "beyond_chance": -1.0,
                    "answer_kept": 1.0,
                }
            )
    return pd.DataFrame(rows)


def facts_of() -> StudyFacts:
    return StudyFacts(
        **describe_machine().model_dump(), model="m", cloud_model=None, fingerprints=["00"], task="qa", measure="F1",
        examples="x.json", samples=60, lengths=[], seed=0, dtype="float32", device="cpu", max_new_tokens=8,
        state="complete",
    )  # fmt: skip
