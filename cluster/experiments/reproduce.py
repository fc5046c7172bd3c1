"""`scout reproduce`: the papers' tables computed anew by this project's own classes, beside the published figures.

Credited quality counts late answers in full, as published; delivered quality counts them as nothing, as everywhere else
here. Bytes are payload bytes, as in the papers. Nothing is drawn but the channel and `quality_max`.
"""

from collections.abc import Sequence
from importlib import resources
from itertools import groupby, islice
from operator import itemgetter
from statistics import fmean
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.estimators import EstimatorSettings, Ewma, Oracle, PublishedEwma
from agents.offer import payload_options
from allocator.policies import make_policy
from allocator.policies.quality_max import QualityMax
from allocator.problem import AgentInfo, ModeOption, Problem, Request
from allocator.sharing import shares_of
from kvcache.modes import Mode
from models.profiles import ModelProfile, load_profile
from netem.channels import MarkovChannel

# Beyond the papers: what these reach on the same problems.
OURS = ("deadline", "optimal")

Printed = tuple[int | float, int | float]


class Settings(BaseModel):
    """Base of the parts of `configs/papers/published.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ProtocolRow(Settings):
    """One deadline: by method, quality and compliance in %."""

    deadline_ms: float
    published: dict[str, Printed]


class Protocol(Settings):
    """One agent on the Markov channel."""

    profile: str
    seed: int
    requests: int
    rows: list[ProtocolRow]


class MultiAgentRow(Settings):
    """One problem: by allocator, total quality and rounds in which all meet in %."""

    agents: int
    uplink_mbps: float
    published: dict[str, Printed]


class MultiAgent(Settings):
    """All agents at once on a constant, known uplink."""

    profiles: list[str]
    deadline_ms: float
    rounds: int
    rows: list[MultiAgentRow]


class Published(Settings):
    """All figures that are reproduced."""

    protocol: Protocol
    multi_agent: MultiAgent


class Reached(NamedTuple):
    """What a policy reaches: quality with and without late answers, and the share (%) of what met its deadline."""

    credited: float
    delivered: float
    met_pct: float


def load_published() -> Published:
    """The published figures that ship with the project."""
    text = (resources.files("configs") / "papers" / "published.yaml").read_text(encoding="utf-8")
    return Published.model_validate(yaml.safe_load(text))


def reproduce(published: Published) -> dict[str, Any]:
    """Both tables, ours beside theirs, as one document; takes a few seconds."""
    protocol, multi_agent = protocol_table(published.protocol), multi_agent_table(published.multi_agent)
    agree = all(cell for row in [*protocol, *multi_agent] for cell in row["agrees"].values())
    return {"agrees": agree, "protocol": protocol, "multi_agent": multi_agent}


def protocol_table(protocol: Protocol) -> list[dict[str, Any]]:
    """A row for every deadline and method. `adaptive` on estimates instead of the true rate is ours."""
    profile = load_profile(protocol.profile)
    rates = [change.mbps for change in islice(MarkovChannel().play(protocol.seed), protocol.requests)]
    rows = []
    for row in protocol.rows:
        methods: list[tuple[str, EstimatorSettings]] = [(name, Oracle()) for name in (*row.published, *OURS)]
        methods += [("adaptive", PublishedEwma()), ("adaptive", Ewma())]
        for name, estimator in methods:
            reached = one_by_one(name, estimator, profile, rates, row.deadline_ms)
            printed = row.published.get(name) if isinstance(estimator, Oracle) else None
            kind = type(estimator).model_fields["kind"].default
            head = {"deadline_ms": row.deadline_ms, "policy": name, "estimator": kind}
            rows.append(head | _beside(reached, printed))
    return rows


def one_by_one(
    name: str, estimator: EstimatorSettings, profile: ModelProfile, rates_mbps: Sequence[float], deadline_ms: float
) -> Reached:
    """One agent's requests, one for each rate: means per request, on the true rate whatever was believed."""
    policy = make_policy("equal" if name == "adaptive" else name)  # alone, its equal share is all
    options = payload_options(profile, profile.modes if name.startswith("static_") else cache_modes(profile))
    agents = (AgentInfo(0, profile.kv_bytes),)
    request = Request(0, 0, deadline_ms / 1e3, options)
    chosen: dict[float, ModeOption] = {}  # by estimate: equal problems have equal answers
    credited, met = [], []
    estimator.report(rates_mbps[0])
    for mbps in rates_mbps:
        estimator.peek(mbps)
        believed = estimator.estimate()
        if believed not in chosen:
            chosen[believed] = policy.solve(Problem(believed, agents, (request,))).choices[0].option
        option = chosen[believed]
        credited.append(option.quality)
        met.append(option.meets(mbps, deadline_ms))
        estimator.report(mbps)
    delivered = [quality * useful for quality, useful in zip(credited, met, strict=True)]
    return Reached(fmean(credited), fmean(delivered), 100 * fmean(met))


def multi_agent_table(multi_agent: MultiAgent) -> list[dict[str, Any]]:
    """A row for every problem and allocator."""
    rows = []
    for row in multi_agent.rows:
        names = [multi_agent.profiles[i % len(multi_agent.profiles)] for i in range(row.agents)]
        for name in (*row.published, *OURS):
            # Only quality_max draws anew each round; the others answer equal rounds equally.
            rounds = multi_agent.rounds if name == QualityMax.name else 1
            profiles = [load_profile(profile) for profile in names]
            reached = at_once(name, profiles, row.uplink_mbps, multi_agent.deadline_ms, rounds)
            head = {"agents": row.agents, "uplink_mbps": row.uplink_mbps, "policy": name}
            rows.append(head | _beside(reached, row.published.get(name)))
    return rows


def at_once(
    name: str, profiles: Sequence[ModelProfile], uplink_mbps: float, deadline_ms: float, rounds: int
) -> Reached:
    """All agents' requests at once: totals per round, and rounds in which all meet."""
    policy = make_policy(name)
    agents = tuple(AgentInfo(i, profile.kv_bytes) for i, profile in enumerate(profiles))
    options = [payload_options(profile, cache_modes(profile)) for profile in profiles]
    credited, delivered, all_met = [], [], []
    for first in range(0, rounds * len(agents), len(agents)):
        requests = tuple(Request(first + i, i, deadline_ms / 1e3, own) for i, own in enumerate(options))
        problem = Problem(uplink_mbps, agents, requests)
        solution = policy.solve(problem)
        rates_mbps = shares_of(problem, solution).rates_mbps
        chosen = [(solution.choices[r.request_id].option, rates_mbps[r.request_id]) for r in requests]
        met = [option.quality for option, mbps in chosen if option.meets(mbps, deadline_ms)]
        credited.append(sum(option.quality for option, _ in chosen))
        delivered.append(sum(met))
        all_met.append(len(met) == len(requests))
    return Reached(fmean(credited), fmean(delivered), 100 * fmean(all_met))


def cache_modes(profile: ModelProfile) -> list[Mode]:
    """The modes that the papers' adaptive choice has: all that send a cache, pruned ones included."""
    return [mode for mode in profile.modes if mode.is_cache]


def agrees(value: float, printed: float) -> bool:
    """Whether a value rounds to what was printed; to a digit after the point even where none was printed."""
    digits = max(1, len(str(printed).partition(".")[2]))
    return abs(value - printed) <= 0.5 * 10**-digits + 1e-9


def _beside(reached: Reached, printed: Printed | None) -> dict[str, Any]:
    figures = {} if printed is None else dict(zip(("credited", "met_pct"), printed, strict=True))
    cells = {figure: agrees(getattr(reached, figure), value) for figure, value in figures.items()}
    return {"published": figures, "reached": reached._asdict(), "agrees": cells}


def show(console: Console, found: dict[str, Any]) -> None:
    """Print both tables and the verdict."""
    by_deadline = _table(
        "One agent on the Markov channel: quality in % per request", "deadline", "policy", "chooses by", met="in time %"
    )
    for deadline_ms, rows in groupby(found["protocol"], key=itemgetter("deadline_ms")):
        by_deadline.add_section()
        for row in rows:
            _add(by_deadline, row, f"{deadline_ms / 1000:g} s", row["policy"], row["estimator"])
    by_problem = _table(
        "All agents at once: total quality per round", "agents", "Mbit/s", "policy", met="rounds all met %"
    )
    for (agents, mbps), rows in groupby(found["multi_agent"], key=itemgetter("agents", "uplink_mbps")):
        by_problem.add_section()
        for row in rows:
            _add(by_problem, row, str(agents), f"{mbps:g}", row["policy"])
    console.print(by_deadline, by_problem)
    figures = [cell for row in found["protocol"] + found["multi_agent"] for cell in row["agrees"].values()]
    console.print(f"{sum(figures)} of {len(figures)} published figures agree to the printed digit.", highlight=False)


def _table(title: str, *heads: str, met: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for name in heads:
        table.add_column(name, no_wrap=True)
    for name in ("credited\npublished", "\nhere", f"{met}\npublished", "\nhere", "delivered\nhere"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _add(table: Table, row: dict[str, Any], *heads: str) -> None:
    cells: list[str | Text] = []
    for figure in ("credited", "met_pct"):
        mark = {True: (" ✓", "green"), False: (" ✗", "red"), None: ("  ", "")}[row["agrees"].get(figure)]
        cells += [str(row["published"].get(figure, "–")), Text.assemble(f"{row['reached'][figure]:.1f}", mark)]
    table.add_row(*heads, *cells, f"{row['reached']['delivered']:.1f}")
