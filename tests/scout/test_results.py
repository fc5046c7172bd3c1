"""Results in Python: every figure of the reports as axes, tables, HTML in which text stays text."""

import html
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import yaml
from matplotlib import pyplot
from matplotlib.axes import Axes

import scout
from reports import comparison_figures, figures
from tests.support.scenarios import write_scenario

matplotlib.use("agg")
BUSY = {"arrivals": {"kind": "poisson", "rate_per_s": 1.0, "duration_s": 10}}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> scout.RunResults:
    folder = tmp_path_factory.mktemp("run")
    return scout.run(write_scenario(folder, **BUSY), engine="simulated", out=folder / "out")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> scout.ComparisonResults:
    folder = tmp_path_factory.mktemp("comparison")
    sweep = {"uplink.channel.mbps": [5, 20]}
    path = write_scenario(folder, **BUSY, uplink={"channel": {"kind": "constant", "mbps": 20}})
    return scout.compare(path, allocators=["deadline", "equal"], seeds=3, sweep=sweep, out=folder / "out")


def axes_of(found: Any) -> list[Axes]:
    try:
        return [found] if isinstance(found, Axes) else list(found)
    finally:
        pyplot.close("all")


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_of_a_run_is_a_method(results: scout.RunResults, name: str) -> None:
    assert name in dir(results.plot)
    if name == "reliability":  # these allocators took one rate for sure
        with pytest.raises(scout.InputError, match="nothing to draw"):
            results.plot.reliability()
        return
    axes = axes_of(getattr(results.plot, name)())
    assert axes and all(isinstance(ax, Axes) and ax.has_data() for ax in axes)


@pytest.mark.parametrize("name", [*comparison_figures.FIGURES, "slack"])
def test_every_figure_of_a_comparison_is_a_method(compared: scout.ComparisonResults, name: str) -> None:
    assert axes_of(getattr(compared.plot, name)())[0].has_data()


def test_a_figure_can_be_chosen(results: scout.RunResults, compared: scout.ComparisonResults) -> None:
    axes_of(results.plot.timeline("model_aware"))
    axes_of(compared.plot.differences("delivered_quality"))
    axes_of(compared.plot.load("uplink.channel.mbps"))
    with pytest.raises(scout.InputError, match="none of 'best'; there are equal, model_aware"):
        results.plot.timeline("best")
    with pytest.raises(AttributeError, match="no figure 'pie'; there are timeline, slack"):
        results.plot.pie()


def test_a_figure_of_nothing_says_so(tmp_path: Path) -> None:
    path = write_scenario(tmp_path, **BUSY)
    group = yaml.safe_load(path.read_text())["agents"]["groups"][0]
    alone = scout.run(path, engine="simulated", out=tmp_path / "out", overrides={"agents.groups": [group]})
    with pytest.raises(scout.InputError, match="agents: these results have nothing to draw"):
        alone.plot.agents()


def test_a_comparison_has_tables_of_all_runs(compared: scout.ComparisonResults) -> None:
    assert len(compared.runs) == 6 and set(compared.ledger.seed) == set(range(42, 45))
    assert compared.requests_by("allocator", "seed").issued.sum() == len(compared.ledger)
    row = compared.figures.set_index(["uplink.channel.mbps", "allocator"]).loc[(20, "deadline")]
    figure = compared.summary.points[1].figures["deadline"]
    assert row.compliance_percent == figure.compliance.mean and row.met == figure.met
    assert set(compared.verdicts["metric"]) == {"compliance", "delivered_quality"}
    assert len(compared.timeline) > 0 and "deadline, equal" in repr(compared)


def test_text_in_html_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    path = write_scenario(tmp_path, description=evil, **BUSY)
    shown = scout.run(path, engine="simulated", out=tmp_path / "out")._repr_html_()
    assert evil not in shown and html.escape(evil) in shown and "<td>" in shown


def test_comparisons_and_reports_are_shown(results: scout.RunResults, compared: scout.ComparisonResults) -> None:
    shown = compared._repr_html_()
    assert "deadline" in shown and "uplink.channel.mbps 5" in shown
    assert results.report().read_text(encoding="utf-8").startswith("<!doctype html>")
    assert scout.load(compared.folder).summary == compared.summary


def test_sweeps_and_seeds_are_checked(tmp_path: Path) -> None:
    path = write_scenario(tmp_path, **BUSY)
    for options, message in (
        ({"sweep": {"seed": [1]}}, "sweep seed: that is what `seeds` is for"),
        ({"sweep": {"deadline_ms": []}}, "sweep deadline_ms: no values"),
        ({"seeds": 0}, "seeds: 0; there may be 1 to 1000"),
    ):
        with pytest.raises(scout.InputError, match=message):
            scout.compare(path, out=tmp_path / "out", **options)
