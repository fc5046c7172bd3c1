"""`scout channel` plays any registered channel, and says in one line what it can't."""

import json
from io import StringIO
from itertools import islice
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.experiments.channel_preview import make_channel, parse_settings, play, show
from netem.channels import CHANNELS, MarkovChannel
from netem.channels.ar1 import PUBLISHED, Ar1Channel
from tests.support.commands import scout


def test_the_published_markov_sequence() -> None:
    done = scout("channel", "markov", "--seed", "42", "--steps", "1000", "--json")
    assert done.returncode == 0, done.stderr
    played = json.loads(done.stdout)
    assert set(played) == {"kind", "seed", "settings", "rates_mbps", "at_s"}
    assert (played["kind"], played["seed"], played["settings"]) == ("markov", 42, {"step_s": 1.0})
    assert played["rates_mbps"] == [change.mbps for change in islice(MarkovChannel().play(42), 1000)]
    assert played["at_s"] == list(range(1000))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_scenarios_by_name_alone(name: str) -> None:
    expected = list(islice(Ar1Channel.model_validate({"scenario": name, "step_s": 0.5}).play(7), 30))
    for kind, settings in ((name, ["step_s=0.5"]), ("ar1", [f"scenario={name}", "step_s=0.5"])):
        played = play(make_channel(kind, parse_settings(settings)), 7, 30)
        assert played["kind"] == "ar1" and played["settings"]["scenario"] == name
        assert list(zip(played["at_s"], played["rates_mbps"], strict=True)) == expected


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, list[str]]:
    (tmp_path / "t.csv").write_text("t_s,mbps\n0,10\n1,20\n")
    return {
        "constant": ["mbps=50"],
        "steps": ["steps=[[0, 50], [10, 5]]"],
        "markov": [],
        "ar1": ["mean=10", "std=2", "min=1", "max=20", "rho=0.5"],
        "cellular": ["cell=nr_mmwave"],
        "trace": [f"path={tmp_path / 't.csv'}"],
    }


@pytest.mark.parametrize("kind", CHANNELS)
def test_every_registered_channel(kind: str, settings: dict[str, list[str]]) -> None:
    played = play(make_channel(kind, parse_settings(settings[kind])), 3, 8)
    assert len(played["rates_mbps"]) == len(played["at_s"]) == {"constant": 1, "steps": 2}.get(kind, 8)
    json.dumps(played, allow_nan=False)
    printed = StringIO()
    show(Console(width=110, file=printed), played)
    shown = printed.getvalue()
    assert f"{kind}, seed 3" in shown and f"most {max(played['rates_mbps']):.4g}" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wifi"], "no channel 'wifi'; there are constant, steps, markov, ar1, cellular, trace, urban_mmwave"),
        (["constant"], "channel constant: mbps: is missing"),
        (["constant", "--set", "mbps=-1"], "channel constant: mbps: -1: input should be greater"),
        (["constant", "--set", "mbps=fast"], "mbps: 'fast': input should be a valid number"),
        (["constant", "--set", "mbps=.nan"], "mbps: nan: input should be a finite number"),
        (["constant", "--set", "mbps"], "--set takes key=value, not 'mbps'"),
        (["constant", "--set", "mbps=1", "--set", "mbps=2"], "--set mbps is given twice"),
        (["markov", "--set", "mbps=5"], "channel markov: mbps: unknown key; allowed here: kind, step_s"),
        (["markov", "--set", "step_s=[1"], "--set step_s: '[1' is not a value"),
        (["markov", "--set", "step_s=1e308"], "step 20 is at no finite time"),
        (["markov", "--set", "kind=steps"], "kind: 'steps': input should be 'markov'"),
        (["ar1"], "channel ar1: mean: is missing, and so is std, min, max, rho"),
        (["ar1", "--set", "scenario=moon"], "channel ar1: "),
        (["vehicular", "--set", "min=60"], "min <= mean <= max must hold"),
        (["steps", "--set", "steps=[[1, 50]]"], "steps: the first step must be at 0 s, not 1 s"),
        (["trace", "--set", "path=gone.csv"], "gone.csv: No such file"),
        (["markov", "--seed", "-1"], "seed -1: from 0 to 4294967295"),
        (["markov", "--steps", "0"], "steps 0: from 1 to 1000000"),
        (["markov", "--steps", "9999999999"], "steps 9999999999: from 1"),
    ],
)
def test_nonsense_is_one_line(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["channel", *arguments])
    assert done.exit_code == 2, done.output
    assert done.stdout == "" and len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr


def test_a_channel_as_a_trace_that_plays_the_same(tmp_path: Path) -> None:
    done = scout("channel", "lte_walking", "--steps", "50", "--csv")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "walk.csv"
    path.write_text(done.stdout)
    traced = play(make_channel("trace", {"path": path}), 0, 50)
    assert traced["rates_mbps"] == pytest.approx(play(make_channel("lte_walking", {}), 42, 50)["rates_mbps"], abs=1e-3)
