"""Every actor of a run over several nodes has a node before anything starts, or a message says what lacks where."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.live.nodes import Layout, Node, lay_out
from cluster.live.placement import PlacementError
from cluster.scenario.schema import DocumentError, Scenario

Write = Callable[..., Path]
EDGE = {"labels": {"site": "edge"}}
CLOUD = {"resources": {"pool": 2}}
HERE = Node("id-a", "10.0.0.1", "station", {}, {"CPU": 4}, {"CPU": 4})
NODES = [
    HERE,
    Node("id-b", "10.0.0.2", "bee", {"site": "edge"}, {"CPU": 2}, {"CPU": 2}),
    Node("id-c", "10.0.0.3", "sea", {"site": "edge"}, {"CPU": 4}, {"CPU": 0.5}),
    Node("id-d", "10.0.0.4", "dee", {"site": "core"}, {"CPU": 4, "pool": 2, "GPU": 2}, {"CPU": 4, "GPU": 2}),
]
SMALL = "tiny-profiles.yaml/small"


def loaded(write: Write, nodes: dict[str, Any], groups: list[dict[str, Any]], **changes: Any) -> Scenario:
    cluster = {"nodes": nodes} | changes.pop("cluster", {})
    agents = {"groups": [{"profile": SMALL} | group for group in groups]} | changes.pop("agents", {})
    return Scenario.load(write(cluster=cluster, agents=agents, **changes))


def spots(layout: Layout) -> tuple[list[str | None], list[str | None]]:
    return [spot.node_id for spot in layout.hosts], [spot.node_id for spot in layout.workers]


def test_actors_go_where_their_kind_is_and_has_most_cpus_left(scenario: Write) -> None:
    groups = [{"count": 4, "node": "edge", "per_actor": 2}, {"count": 2}]
    s = loaded(scenario, {"edge": EDGE, "cloud": CLOUD}, groups, cloud={"workers": 2, "node": "cloud"})
    layout = lay_out(s, NODES, "id-a")
    assert [list(agents) for agents in s.hosts] == [[0, 1], [2, 3], [4], [5]]
    assert spots(layout) == (["id-b", "id-b", "id-a", "id-a"], ["id-d", "id-d"])
    assert [str(node) for node in layout.remote()] == ["10.0.0.2 (bee)", "10.0.0.4 (dee)"]
    assert (layout.probes("id-b"), layout.probes("id-d")) == (("host", 0), ("worker", 0))


def test_gpus_are_asked_for_where_there_are_some_and_it_is_said_where_there_are_none(scenario: Write) -> None:
    cloud = {"workers": 3, "node": "cloud", "num_gpus": 0.6}
    s = loaded(scenario, {"edge": EDGE, "cloud": CLOUD}, [{"node": "edge"}], cloud=cloud | {"workers": 2})
    layout = lay_out(s, NODES, "id-a")
    assert [spot.gpus for spot in layout.workers] == [0.6, 0.6]
    assert layout.notice and "no GPU on" in layout.notice and "10.0.0.2 (bee)" in layout.notice
    s = loaded(scenario, {"edge": EDGE, "cloud": CLOUD}, [{"node": "edge"}], cloud=cloud)
    with pytest.raises(PlacementError, match=r"worker 2 .* 10.0.0.4 \(dee\) has no room on its 2 GPU\(s\) for 0.6"):
        lay_out(s, NODES, "id-a")
    s = loaded(scenario, {"cloud": CLOUD | {"gpus": 1}}, [{}], cloud=cloud | {"workers": 2})
    with pytest.raises(PlacementError, match=r"worker 1 .* no room on its 1 GPU"):
        lay_out(s, NODES, "id-a")
    s = loaded(scenario, {"cloud": {"gpus": 3}}, [{}], cloud=cloud)
    with pytest.raises(PlacementError, match=r"cluster.nodes.cloud: no node .* 10.0.0.4 \(dee\) lacks 3 GPU"):
        lay_out(s, NODES, "id-a")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            {"labels": {"site": "moon"}},
            r"no node .* \(station\) lacks label site=moon: it has no label site; .*site=edge",
        ),
        ({"resources": {"pool": 5}}, r"10.0.0.4 \(dee\) lacks 5 of resource pool: it has 2"),
        ({"address": "10.9.9.9"}, r"10.0.0.1 \(station\) lacks .*isn't 10.9.9.9"),
        (EDGE | {"count": 3}, r"2 of 3 nodes of the cluster will do: 10.0.0.1 \(station\) lacks label"),
    ],
)
def test_a_kind_that_is_not_there_is_named_with_what_each_node_lacks(
    scenario: Write, kind: dict[str, Any], message: str
) -> None:
    s = loaded(scenario, {"far": kind}, [{"node": "far"}])
    with pytest.raises(PlacementError, match=rf"^cluster.nodes.far: .*{message}"):
        lay_out(s, NODES, "id-a")


def test_too_few_cpus_name_the_actor_and_the_nodes(scenario: Write) -> None:
    s = loaded(scenario, {"edge": EDGE}, [{"count": 3, "node": "edge"}], agents={"num_cpus": 1})
    with pytest.raises(
        PlacementError, match=r"^agent 2 \(agents.num_cpus 1\) .* 10.0.0.2 \(bee\) has 0 of 2 CPUs left"
    ):
        lay_out(s, NODES, "id-a")


def test_the_run_must_be_started_on_the_station(scenario: Write) -> None:
    s = loaded(scenario, {"edge": EDGE}, [{}], cluster={"station": "edge"})
    with pytest.raises(PlacementError, match=r"^cluster.station: .*10.0.0.1 \(station\), .*no node of 'edge'.*submit"):
        lay_out(s, NODES, "id-a")
    assert lay_out(s, NODES, "id-b").remote() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"agents": {"groups": [{"profile": SMALL, "node": "edge"}]}},
            r"agents.groups\[0\].node: there is no `cluster`",
        ),
        ({"cloud": {"node": "x"}, "cluster": {"nodes": {"edge": EDGE}}}, "cloud.node: no kind of nodes 'x'.* are edge"),
        ({"cluster": {"nodes": {"edge": EDGE}, "station": "y"}}, "cluster.station: no kind of nodes 'y'"),
        ({"cluster": {"nodes": {}}}, "cluster.nodes: .*at least 1"),
        ({"cluster": {"nodes": {"edge": {"label": {}}}}}, "cluster.nodes.edge.label: unknown key"),
    ],
)
def test_mistakes_are_found_in_the_scenario(scenario: Write, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        Scenario.load(scenario(**changes))


def test_without_the_key_hosts_are_what_they_were(scenario: Write) -> None:
    groups = [{"profile": SMALL, "count": 7}, {"profile": SMALL, "count": 3, "weight": 2}]
    s = Scenario.load(scenario(agents={"groups": groups, "per_actor": 4}))
    assert s.hosts == [range(0, 4), range(4, 8), range(8, 10)]
    assert s.host_of == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_the_peak_counts_what_events_do_to_the_uplink(scenario: Write) -> None:
    channel = {"kind": "steps", "steps": [[0, 20], [0.5, 30], [1000, 90]]}
    assert Scenario.load(scenario(uplink={"channel": channel})).peak_mbps == 30
    event = {"kind": "uplink", "at_s": 0.1, "steps": [{"mbps": 55, "for_s": 1}]}
    assert Scenario.load(scenario(uplink={"channel": channel}, events=[event])).peak_mbps == 55
