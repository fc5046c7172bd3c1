"""The example clusters are what Ray and KubeRay take, and the example scenario has room on each."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import Draft7Validator

from cluster.live.nodes import Node, lay_out
from cluster.scenario.schema import Scenario
from tests.support.commands import REPOSITORY

EXAMPLES = REPOSITORY / "examples" / "cluster"
SCENARIO = Scenario.load(EXAMPLES / "scenario.yaml")


def loaded(name: str) -> dict[str, Any]:
    return yaml.safe_load((EXAMPLES / name).read_text())


def node(number: int, cpus: float, resources: dict[str, float]) -> Node:
    has = {"CPU": cpus} | resources
    return Node(f"id-{number}", f"10.0.0.{number}", f"node-{number}", {}, has, has)


def pods(spec: dict[str, Any]) -> list[Node]:
    """The nodes that a RayCluster's specification makes."""
    groups = [(1, spec["headGroupSpec"])]
    groups += [(group["replicas"], group) for group in spec["workerGroupSpecs"]]
    found: list[Node] = []
    for replicas, group in groups:
        (container,) = group["template"]["spec"]["containers"]
        # KubeRay puts the value into `ray start --resources=<value>`, which a shell reads.
        (given,) = shlex.split(group["rayStartParams"].get("resources", "'{}'"))
        for _ in range(replicas):
            found.append(node(len(found), float(container["resources"]["limits"]["cpu"]), json.loads(given)))
    return found


def check_cluster(spec: dict[str, Any]) -> None:
    """What KubeRay requires of a RayCluster's specification, and Ray of its nodes."""
    names = [group["groupName"] for group in spec["workerGroupSpecs"]]
    assert len(set(names)) == len(names)
    images, tokens = set(), set()
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay takes strings"
        (container,) = group["template"]["spec"]["containers"]
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in group["template"]["spec"].get("volumes", [])}
        assert container["resources"]["limits"] == container["resources"]["requests"]
        images.add(container["image"])
        tokens.add(json.dumps(container["env"]))
        privileged = container.get("securityContext", {}).get("privileged", False)
        assert privileged is (group is spec["headGroupSpec"]), "the station alone"
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert len(images) == len(tokens) == 1, "one version and one token on all nodes"


def fits(nodes: list[Node]) -> None:
    layout = lay_out(SCENARIO, nodes, nodes[0].node_id)
    assert layout.station is nodes[0] and len(layout.remote()) >= 2


def test_a_ray_cluster_on_kubernetes() -> None:
    document = loaded("raycluster.yaml")
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", "RayCluster")
    check_cluster(document["spec"])
    fits(pods(document["spec"]))


def test_a_ray_job_on_kubernetes() -> None:
    document = loaded("rayjob.yaml")
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", "RayJob")
    spec = document["spec"]
    check_cluster(spec["rayClusterSpec"])
    fits(pods(spec["rayClusterSpec"]))
    assert spec["backoffLimit"] == 0 and spec["submissionMode"] == "K8sJobMode"
    command = shlex.split(spec["entrypoint"])
    (container,) = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    for path in (command[2], command[command.index("--out") + 1]):
        assert str(Path(path).parent) in mounts, "what must outlive the pods, and what they must find, is on a volume"


def test_machines_by_ray_up() -> None:
    document = loaded("ray-up.yaml")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    assert [error.message for error in Draft7Validator(schema).iter_errors(document)] == []
    starts = document["worker_start_ray_commands"][-1]
    (given,) = re.findall(r"--resources='(.*?)'", starts)
    workers = document["provider"]["worker_ips"]
    fits([node(number, 4, json.loads(given) if number else {}) for number in range(len(workers) + 1)])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_docs_name_every_example(path: Path) -> None:
    assert path.name in (REPOSITORY / "docs" / "cluster.md").read_text()
