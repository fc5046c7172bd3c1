"""Statistics of studies: over contexts, paired; and claims judged by them."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from reports.claims import Claim, Claims, claims_page, judged, shipped_claims
from reports.files import STUDY, STUDY_RESULTS
from reports.statistics import RESAMPLES, clustered_intervals, clustered_ps, detectable
from reports.study import StudyResults, figures_of, read_study, study_page
from tests.support.studies import facts_of, outcomes_of


def test_intervals_over_contexts_are_wider_where_their_questions_are_alike() -> None:
    rng = np.random.default_rng(0)
    text = np.repeat(np.arange(40), 5)
    alike = np.repeat(rng.normal(size=40), 5) + 0.01 * rng.normal(size=200)
    [[mean, low, high]] = clustered_intervals(alike, text, np.random.default_rng(1))
    [[_, alone_low, alone_high]] = clustered_intervals(alike, np.arange(200), np.random.default_rng(1))
    assert mean == pytest.approx(alike.mean()) and low < mean < high
    assert (high - low) / (alone_high - alone_low) == pytest.approx(5**0.5, rel=0.15)


def test_what_can_be_told_is_told_four_times_of_five() -> None:
    rng = np.random.default_rng(0)
    text, seen = np.arange(60), 0
    least = detectable(rng.normal(size=60), text)
    assert least == pytest.approx(2.8 / 60**0.5, rel=0.25)
    for _ in range(100):
        [[_, low, _]] = clustered_intervals(least + rng.normal(size=60), text, rng, resamples=400)
        seen += low > 0
    assert 65 <= seen <= 95


def test_signs_of_whole_contexts_are_flipped() -> None:
    text = np.repeat(np.arange(6), 10)
    same = np.ones(60)
    shifted, none = clustered_ps(np.column_stack([same, np.zeros(60)]), text, np.random.default_rng(0))
    assert shifted == pytest.approx(2 / 2**6, abs=0.01), "six contexts, not sixty examples"
    assert none == 1.0


def test_signs_are_flipped_in_parts_with_the_digits_of_one_draw() -> None:
    differences = np.random.default_rng(1).normal(0.02, 1, size=(1_500, 2))
    signs = np.random.default_rng(0).integers(2, size=(RESAMPLES, 1_500)) * 2.0 - 1.0
    as_far = (np.abs(signs @ differences) >= np.abs(differences.sum(0))).sum(0)
    del signs
    tracemalloc.start()
    found = clustered_ps(differences, np.arange(1_500), np.random.default_rng(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(1 + count) / (1 + RESAMPLES) for count in as_far.tolist()]
    assert peak < 2**26, "not every sign of every context at once: 240 MB here"


def results(*cases: tuple[str, float, float], count: int = 60) -> StudyResults:
    """A study of examples, two on each context; of each case, by how much F1 and NLL are above those of full."""
    outcomes = outcomes_of(cases, count)
    return StudyResults(Path("x"), facts_of(), outcomes, {0: figures_of(outcomes)}, count, count // 2)


def test_figures_are_paired_with_the_whole_cache() -> None:
    found = results(("full", 0, 0), ("int8", 0, 0), ("int4", -0.2, 0.5))
    by_case = {f.case: f for f in found.figures[0]}
    assert by_case["int8"].f1.difference == pytest.approx(0, abs=0.5) and by_case["int8"].nll.p > 0.05
    int4 = by_case["int4"]
    assert int4.f1.difference == pytest.approx(-20, abs=2) and int4.f1.difference_high < 0
    assert int4.nll.difference == pytest.approx(0.5, abs=0.05) and int4.nll.p < 0.01
    assert int4.f1.high - int4.f1.low > 3 * (int4.f1.difference_high - int4.f1.difference_low), "pairing helps"
    assert by_case["full"].f1.mean == pytest.approx(100 * found.outcomes[found.outcomes.case == "full"].f1.mean())


@pytest.mark.parametrize(
    ("kind", "f1", "nll", "said"),
    [
        ("no_worse", 0.0, 0.0, "holds"),
        ("no_worse", -0.1, 0.5, "doesn't"),
        ("better", 0.1, -0.5, "holds"),
        ("better", -0.1, 0.5, "doesn't"),
        ("better", 0.0, 0.0, "can't be told"),
    ],
)
def test_claims_are_judged_by_intervals(kind: str, f1: float, nll: float, said: str) -> None:
    claim = Claim(id="c", source="s", text="t", kind=kind, first="int8", second="full")  # type: ignore[arg-type]
    claims = Claims(margin_points=3, margin_nats=0.05, claims=[claim])
    study = results(("full", 0, 0), ("int8", f1, nll))
    assert judged(claim, claims, study, "f1").said == said
    assert judged(claim, claims, study, "nll").said == said
    missing = claim.model_copy(update={"second": "nothing"})
    assert judged(missing, claims, study, "f1").said == "not run"
    assert said in claims_page([study], claims)


def test_claims_that_ship_compare_cases_that_a_study_has() -> None:
    from models.study.cases import cases_of

    found = shipped_claims()
    selections = ["q2c", "q2c_last", "q2c_pooled", "snapkv", "h2o", "random"]
    quantizers = ["int8", "int4", "int4_kivi", "mixed_int4", "delta"]
    known = {c.name for c in cases_of(selections, [0.5, 0.25], quantizers, ["prune", "delete"], cloud=True)}
    assert {name for claim in found.claims for name in (claim.first, claim.second) if name} <= known
    assert len({claim.id for claim in found.claims}) == len(found.claims)
    with pytest.raises(ValueError, match="`second` is for comparisons"):
        Claim(id="c", source="s", text="t", kind="better", first="int8")


def test_positions_that_agree_less_than_chance_count() -> None:
    outcomes = outcomes_of([("prompt", 0, 0), ("scout:q2c@0.5", 0, 0)], 4).assign(side="cloud", answer_kept=-1.0)
    scouted = outcomes.case == "scout:q2c@0.5"
    outcomes.loc[scouted, "overlap"], outcomes.loc[scouted, "beyond_chance"] = [0.6, 0.3, 0.5, -1.0], [0.2, -0.4, 0, -1]
    prompt, scout = figures_of(outcomes)
    assert scout.overlap == pytest.approx(1.4 / 3) and scout.beyond_chance == pytest.approx(-0.2 / 3)
    assert np.isnan([prompt.overlap, prompt.beyond_chance, prompt.answer_kept]).all()


def test_contexts_of_other_lengths_are_others(tmp_path: Path) -> None:
    short = outcomes_of([("full", 0, 0), ("int8", 0, 0)], 8)
    long = short.assign(length=400, example="long-" + short.example)
    texts = {column: "" for column in ("selection", "quantizer", "way")}
    pd.concat([short, long]).assign(retention=1.0, **texts).to_parquet(tmp_path / STUDY_RESULTS)
    facts_of().write(tmp_path / STUDY)
    found = read_study(tmp_path)
    assert found.contexts == 8 and found.outcomes.groupby("context").length.nunique().eq(1).all()


def test_pages_say_how_far_a_study_came_and_what_its_reader_has_to_know() -> None:
    found = results(("full", 0, 0), ("int8", 0, 0))
    told = {"state": "partial", "samples": 300, "note": "weights from 4 bits", "kernel": "6.18.44-name-of-a-machine"}
    partial = replace(found, facts=found.facts.model_copy(update=told))
    page, claims = study_page(partial), claims_page([partial], shipped_claims())
    assert page.warnings[0].startswith("partial, 60 of 300 examples: it was interrupted")
    assert ("note", "weights from 4 bits") in page.facts and dict(page.facts)["machine"].endswith("Linux 6.18")
    assert "- m, qa: partial, 60 of 300 examples (x.json" in claims and claims.rstrip().endswith(
        "; weights from 4 bits"
    )
    assert "- m, qa: complete, 60 examples (x.json" in claims_page([found], shipped_claims())


def test_examples_that_a_case_lacks_are_in_no_comparison() -> None:
    outcomes = outcomes_of([("full", 0, 0), ("int8", 0, 0)], 20)
    partial = pd.concat([outcomes[outcomes.case == "full"], outcomes[outcomes.case == "int8"].head(14)])
    assert {f.count for f in figures_of(partial)} == {14}
