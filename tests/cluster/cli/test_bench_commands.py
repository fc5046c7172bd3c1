"""`scout bench` as its users call it."""

import json

from tests.support.commands import scout


def test_the_simulated_engine_s_speed_as_json() -> None:
    done = scout("bench", "simulate", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # one document, and nothing else on standard output
    assert {"cpus", "kernel", "started", "versions"} <= set(found["machine"])
    assert [run["allocator"] for run in found["runs"]] == ["equal", "model_aware", "deadline"]
    for run in found["runs"]:
        assert set(run) == {
            *("agents", "allocator", "requests", "virtual_s", "wall_s"),
            *("requests_per_s", "requests_per_cpu_s", "solve_share", "compliance", "peak_mb"),
        }
        assert run["agents"] == 64 and run["requests"] > 1500
        assert run["virtual_s"] > 50 and run["wall_s"] > 0 and run["requests_per_s"] > 0 and run["peak_mb"] > 0
        assert 0 <= run["solve_share"] <= 1 and 0 <= run["compliance"] <= 1
    assert len({run["requests"] for run in found["runs"]}) == 1, "the same arrivals for all"
