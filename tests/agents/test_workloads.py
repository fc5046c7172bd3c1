"""Workload files are read exactly, in every format, and refused by line and column; generators are as they say."""

import json
import time
from datetime import datetime, timedelta
from math import exp, lgamma, log1p
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from agents.arrivals import Arrival, ArrivalTraceError
from agents.arrivals.generated import KINDS, AnyGaps, AnyTokens, GeneratedWorkload, weibull_shape
from agents.arrivals.workload import Columns, WorkloadFile, WorkloadRequest, read_workload
from models.lengths import Lengths

ROWS = [(0.0, 374, 44), (4.3144891, 396, 109), (4.5, 12, 3), (9.25, 5000, 1)]


def azure(path: Path) -> Path:
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for at_s, context, output in ROWS:
        moment = datetime(2023, 11, 16, 18, 15, 46) + timedelta(seconds=int(at_s))
        lines.append(f"{moment}.{round(at_s % 1 * 1e7):07d},{context},{output}")
    path.write_text("\r\n".join(lines), encoding="utf-8-sig")
    return path


def burstgpt(path: Path) -> Path:
    rows = [f"{at_s},ChatGPT,{c},{o},{c + o},Conversation log" for at_s, c, o in ROWS]
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    path.write_text("\n".join([header, *rows]))
    return path


def mooncake(path: Path) -> Path:
    entries = [
        {"timestamp": at_s * 1e3, "input_length": c, "output_length": o, "hash_ids": [0, n]}
        for n, (at_s, c, o) in enumerate(ROWS)
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def table(path: Path) -> pd.DataFrame:
    return pd.DataFrame(ROWS, columns=["t_s", "context_tokens", "output_tokens"])


def csv_table(path: Path) -> Path:
    table(path).to_csv(path, index=False)
    return path


def json_table(path: Path) -> Path:
    table(path).to_json(path, orient="records", lines=True)
    return path


def parquet_table(path: Path) -> Path:
    path = path.with_suffix(".parquet")
    table(path).to_parquet(path)
    return path


WRITERS = [azure, burstgpt, mooncake, csv_table, json_table, parquet_table]


def lengths_of(arrivals: list[Arrival]) -> list[Lengths | None]:
    return [arrival.lengths for arrival in arrivals]


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_is_told_by_itself_and_read_to_the_digit(write, tmp_path: Path) -> None:
    path = write(tmp_path / "requests.txt")
    found = list(read_workload(path))
    assert [(r.context_tokens, r.output_tokens) for r in found] == [row[1:] for row in ROWS]
    assert [r.at_s - found[0].at_s for r in found] == pytest.approx([row[0] for row in ROWS], abs=1e-6)
    arrivals = WorkloadFile(path=path).schedule(3, np.random.default_rng(0))
    assert lengths_of(arrivals) == [Lengths(*row[1:]) for row in ROWS]
    assert [arrival.agent_id for arrival in arrivals] == [0, 1, 2, 0]


def test_dates_are_the_same_whatever_the_time_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where clocks are set forward, an hour of local time isn't there; in a file it is an hour like any other."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        moments = [datetime(2024, 3, 31, 1, 59), datetime(2024, 3, 31, 2, 30), datetime(2024, 3, 31, 3, 1)]
        rows = pd.DataFrame({"t_s": moments, "context_tokens": 5, "output_tokens": 5})
        rows.to_parquet(tmp_path / "w.parquet")
        rows.to_csv(tmp_path / "w.csv", index=False)
        for name in ("w.parquet", "w.csv"):
            at_s = [request.at_s for request in read_workload(tmp_path / name)]
            assert np.diff(at_s).tolist() == [31 * 60, 31 * 60]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_blocks_of_prefixes_are_kept(tmp_path: Path) -> None:
    assert [request.blocks for request in read_workload(mooncake(tmp_path / "m"))] == [(0, n) for n in range(4)]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=40),
    st.floats(0, 20),
    st.floats(0.1, 40),
    st.integers(1, 4),
    st.floats(0.1, 10),
)
def test_a_window_thinned_and_sped_up(tmp_path_factory, rows, start_s, duration_s, every, speed) -> None:
    rows = sorted(rows)
    path = tmp_path_factory.mktemp("w") / "w.csv"
    pd.DataFrame(rows, columns=["t_s", "context_tokens", "output_tokens"]).to_csv(path, index=False)
    first_s = rows[0][0]
    within = [r for r in rows if start_s <= r[0] - first_s < start_s + duration_s and r[1] and r[2]][::every]
    settings = {"path": path, "start_s": start_s, "duration_s": duration_s, "every": every, "speed": speed}
    if not within:
        with pytest.raises(ValueError, match="no request in the window"):
            WorkloadFile.model_validate(settings)
        return
    arrivals = WorkloadFile.model_validate(settings).schedule(2, np.random.default_rng(0))
    assert lengths_of(arrivals) == [Lengths(c, o) for _, c, o in within]
    assert [a.intended_s for a in arrivals] == pytest.approx([(r[0] - first_s - start_s) / speed for r in within])


def test_a_session_has_one_agent(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("when,ctx,out,user\n0,1,1,a\n1,1,1,b\n2,1,1,a\n3,1,1,c\n4,1,1,b\n")
    names = Columns(t_s="when", context_tokens="ctx", output_tokens="out", session="user")
    arrivals = WorkloadFile(path=path, columns=names, spread="session").schedule(2, np.random.default_rng(0))
    assert [arrival.agent_id for arrival in arrivals] == [0, 1, 0, 0, 1]


HEAD = "t_s,context_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "w:1: no first line"),
        (HEAD, "w: no requests after the first line"),
        (HEAD + "0,5,5\n1,5\n", "w:3: 2 cells where the header has 3"),
        (HEAD + "0,5,5\n\n1,5.5,5\n", r"w:4: context_tokens: '5.5' is not a whole number from 0 to 10,000,000"),
        (HEAD + "0,5,1e9\n", "w:2: output_tokens: '1e9' is not a whole number"),
        (HEAD + "0,5,nan\n", "w:2: output_tokens: 'nan'"),
        (HEAD + "soon,5,5\n", "w:2: t_s: 'soon' is neither a finite number nor a date"),
        (HEAD + "inf,5,5\n", "w:2: t_s: 'inf' is neither"),
        (HEAD + "1,5,5\n0.5,5,5\n", "w:3: earlier than the request before it; sort by time"),
        (HEAD + "0,0,5\n", "w: no request in the window"),
        (HEAD + "0,5,5\n9999999,5,5\n", "w:3: 1e.07 s after the window's start; the longest turn has 604800"),
        ("a,b\n1,2\n", "w:2: no column 'context_tokens'; there are 'a, b'"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1}\n[]\n', r"w:2: '\[\]' is not a JSON object"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1}\n{"timestamp"\n', "w:2: not JSON: .*column 13"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": "x"}\n', "w:1: hash_ids: not a list"),
        ('{"timestamp": ' + "9" * 5000 + "}\n", "w:1: not JSON that can be read"),
        ("[" * 100_000, "w: no requests after the first line"),
        ('{"a": ' * 100_000, "w:1: not JSON"),
    ],
)
def test_what_is_wrong_is_named_by_line_and_column(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        WorkloadFile(path=path)


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self", "nowhere.csv"])
def test_what_is_no_file_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=path):
        WorkloadFile(path=Path(path))


def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_text(HEAD + "0" * 3_000_000)
    with pytest.raises(ValueError, match="line 2 has more than 1,048,576 bytes"):
        WorkloadFile(path=path)


@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("w", "w.parquet"):
        (folder / name).write_bytes(content)
        try:
            found = list(read_workload(folder / name))
        except ArrivalTraceError as error:
            assert str(folder / name) in str(error)
        else:
            assert all(isinstance(request, WorkloadRequest) for request in found)


@pytest.mark.parametrize("like", KINDS)
def test_generators_have_the_lengths_that_they_were_fitted_to(like: str) -> None:
    kind = KINDS[like]
    arrivals = GeneratedWorkload(like=like, rate_per_s=20, duration_s=1000).schedule(4, np.random.default_rng(1))
    for number, tokens in enumerate((kind.context_tokens, kind.output_tokens)):
        found = [arrival.lengths[number] for arrival in arrivals if arrival.lengths]
        assert np.percentile(found, [50, 90]) == pytest.approx([tokens.p50, tokens.p90], rel=0.05)
        assert min(found) >= 1 and max(found) <= tokens.most
    assert {arrival.agent_id for arrival in arrivals} == {0, 1, 2, 3}


GAPS = [
    ({"kind": "poisson"}, 1.0),
    ({"kind": "gamma", "cv": 0.3}, 0.3),
    ({"kind": "gamma", "cv": 3}, 3.0),
    ({"kind": "weibull", "cv": 0.5}, 0.5),
    ({"kind": "weibull", "cv": 3}, 3.0),
    ({"kind": "modulated", "factor": 10, "busy_s": 5, "quiet_s": 20}, None),
    ({"kind": "diurnal", "period_s": 100, "swing": 0.9}, None),
]


@pytest.mark.parametrize(("settings", "cv"), GAPS)
def test_gaps_have_their_rate_and_their_variation(settings: dict, cv: float | None) -> None:
    times = TypeAdapter(AnyGaps).validate_python(settings).times(10, 4000, np.random.default_rng(2))
    assert times == sorted(times) and times[0] >= 0 and times[-1] < 4000
    assert len(times) / 4000 == pytest.approx(10, rel=0.1)
    gaps = np.diff(times)
    if cv is None:
        assert np.std(gaps) / np.mean(gaps) > 1.1, "more than a Poisson process"
    else:
        assert np.std(gaps) / np.mean(gaps) == pytest.approx(cv, rel=0.1)


@pytest.mark.parametrize("cv", [0.05, 0.5, 1, 8.6, 50])
def test_the_shape_of_a_weibull_distribution(cv: float) -> None:
    shape = weibull_shape(cv)
    assert exp(lgamma(1 + 2 / shape) - 2 * lgamma(1 + 1 / shape) - log1p(cv**2)) == pytest.approx(1, rel=1e-6)


def test_drawn_from_a_list() -> None:
    drawn = TypeAdapter(AnyTokens).validate_python({"kind": "empirical", "values": [3, 7]})
    assert set(drawn.draw(100, np.random.default_rng(0)).tolist()) == {3, 7}


@pytest.mark.parametrize(
    "wrong",
    [
        {"like": "novel"},
        {"gaps": {"kind": "gamma", "cv": 0}},
        {"context_tokens": {"kind": "lognormal", "p50": 10, "p90": 5}},
        {"context_tokens": {"kind": "empirical", "values": []}},
        {"rate_per_s": 0},
    ],
)
def test_wrong_generators_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        GeneratedWorkload.model_validate({"like": "chat", "duration_s": 10} | wrong)
