"""The JSON documents of this project's results, as their writers make them and their readers take them.

Every key is always written; `null` stands where a value doesn't apply. Readers ignore unknown keys.
Times are in ms where a key ends in `_ms` and in s where it ends in `_s`; rates are link-layer Mbit/s; shares are from
0 to 1.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from configs.reading import FileRefused, read_bytes
from netem.checks.verify import LinkVerification
from netem.link import AgentCounters

MAX_DOCUMENT_BYTES = 64 * 2**20
Metric = Literal["compliance", "delivered_quality"]


class DocumentUnreadable(ValueError):
    """A file isn't the document that it should be; the message says where and why, in one line."""


class Document(BaseModel):
    """Base of all documents and their parts."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, validate_assignment=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a JSON file.

        Raises:
            OSError: there is no such file, or it can't be read.
            DocumentUnreadable: it is no regular file, too large, not JSON, or lacks something.
        """
        try:
            return cls.model_validate_json(read_bytes(path, MAX_DOCUMENT_BYTES))
        except FileRefused as error:
            raise DocumentUnreadable(error.reason) from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            if first["type"] == "json_invalid":
                raise DocumentUnreadable("not JSON") from None
            where = ".".join(map(str, first["loc"])) or "the document"
            raise DocumentUnreadable(f"{where}: {first['msg']}") from None

    def write(self, path: Path) -> None:
        """Write a JSON file in one step: a reader sees the old file or the new one."""
        beside = path.with_suffix(".tmp")
        beside.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        beside.replace(path)


class Machine(Document):
    """Hardware and versions behind a result; `machine` is the CPU's architecture."""

    started: str
    command: str
    python: str
    kernel: str
    machine: str
    cpu: str = ""
    cpus: int
    memory_gib: float
    gpu: str | None = None
    versions: dict[str, str]

    def line(self) -> str:
        """For the title of a table."""
        gpu = f", {self.gpu}" if self.gpu else ""
        return f"{self.cpu or self.machine}, {self.cpus} cores{gpu}, Linux {self.kernel}, {self.started[:10]}"


class StudyFacts(Machine):
    """`study.json` in a study's folder: what was asked, of which models, and how far it came.

    Attributes:
        fingerprints: of the models' weights, hexadecimal, edge first.
        examples, examples_sha256: what file they are from, or which source, and the digest of a file's content.
        lengths: of generated contexts, in tokens; empty for given ones.
        measure: what `f1` is called in this task.
        plan, plan_rise, plan_held_out: of `mixed_int4`, and by how much it raised the negative log-likelihood (nats a
            token) where it was found and on other examples.
        left_out: examples that a model can't take, with the reason.
        note: what a reader has to know besides, such as where the weights came from.
        outcomes, elapsed_s: how many there are, and how long this and earlier parts took.
    """

    model: str
    cloud_model: str | None
    fingerprints: list[str]
    task: str
    measure: str
    examples: str
    examples_sha256: str = ""
    samples: int
    lengths: list[int]
    seed: int
    dtype: str
    device: str
    max_new_tokens: int
    plan: list[str] | None = None
    plan_rise: float | None = None
    plan_held_out: float | None = None
    left_out: list[str] = []
    note: str = ""
    state: Literal["partial", "complete"] = "partial"
    outcomes: int = 0
    elapsed_s: float = 0.0


class RunFacts(Machine):
    """`run.json`: facts about a run, beside its scenario. Written when it begins, and again as more is known.

    Attributes:
        base_dir: the folder that the scenario's relative paths start from.
        pid_started: start time of the driver process `pid` in clock ticks since boot; the two identify the process.
        ask_ms: simulated runs: the time that it takes to ask each allocator.
        wall_s: simulated runs: how long the simulation took.
    """

    engine: str
    base_dir: str
    pid: int
    pid_started: int | None
    link: str | None = None
    privilege: str | None = None
    fallback_reason: str | None = None
    verified: LinkVerification | None = None
    ask_ms: dict[str, float] = {}
    wall_s: float | None = None


class SolveTime(Document):
    """Percentiles of an allocator's solve times; None where it never solved."""

    p50: float | None = None
    p99: float | None = None


class Percentiles(Document):
    """Of durations in ms; None where there were none."""

    p50: float | None
    p95: float | None
    p99: float | None


class Lateness(Percentiles):
    """How late the emulator itself started requests, in ms."""

    max: float | None


class Outcomes(Document):
    """Numbers of requests; scheduled = met + late + rejected + failed.

    Attributes:
        issued: those that were released; the others failed before that, with a reason that says so.
    """

    scheduled: int
    issued: int
    met: int
    late: int
    rejected: int
    failed: int

    @model_validator(mode="before")
    @classmethod
    def _of_older_documents(cls, data: Any) -> Any:
        """Documents without `scheduled` hold requests that were issued, and no others."""
        if isinstance(data, dict) and "scheduled" not in data and "issued" in data:
            return data | {"scheduled": data["issued"]}
        return data

    def counts(self) -> dict[str, int]:
        """By name, in this order."""
        return {name: getattr(self, name) for name in Outcomes.model_fields}


class SolveGaps(Document):
    """How far an allocator's solves were from the static optimum at most, by their certificates; shares of the bound.

    Attributes:
        solves: those with a certificate.
        met_proved: share of them that are proved to meet as much weight as can be met.
        curve: percentiles 0 to 100 of the quality's gap; empty without certificates.
    """

    solves: int = 0
    met_proved: float | None = None
    curve: list[float] = []


class Serving(Document):
    """What inference servers are measured by, of answered requests.

    Attributes:
        ttft_ms: time to the first token, from the intended start; the latency of answers that come whole.
        tpot_ms: time per output token after the first; of answers whose tokens come one by one.
        requests_per_s: answered; goodput_per_s: answered within every limit that is set (goodput).
        tokens_per_s, token_goodput_per_s: the same of the tokens of answers; None where they aren't counted.
    """

    ttft_ms: Percentiles
    tpot_ms: Percentiles
    requests_per_s: float
    goodput_per_s: float
    tokens_per_s: float | None
    token_goodput_per_s: float | None


class AllocatorSummary(Outcomes):
    """The figures of one allocator's turn.

    Attributes:
        compliance: SLO attainment: the share of scheduled requests answered by their deadline.
        rounds_all_met: share of synchronized rounds in which every request met its deadline; None without rounds.
        credited_quality: mean over scheduled requests of the quality of their answers, late ones included (as the
            papers count); delivered_quality: late ones count 0.
        latency_ms: of answered requests (met and late), from the intended start.
        stages_ms: median duration of each stage over answered requests.
        solve_curve_ms: percentiles 0 to 100 of the allocator's solve times; empty where it never solved.
        stolen: share of this machine's CPU time that its host gave to others meanwhile (live only).
        serving: None in documents from before it was measured.
    """

    compliance: float
    rounds: int
    rounds_all_met: float | None
    credited_quality: float
    delivered_quality: float
    latency_ms: Percentiles
    stages_ms: dict[str, float | None]
    payload_bytes: int
    wire_bytes: int
    lateness_ms: Lateness
    modes: dict[str, int]
    reasons: dict[str, int]
    solve_ms: SolveTime = SolveTime()
    solve_curve_ms: list[float] = []
    solve_gaps: SolveGaps = SolveGaps()
    stolen: float = 0.0
    serving: Serving | None = None


class TimelineEvent(Document):
    """An intervention or a fault in an allocator's turn, `at_s` seconds after the turn's start."""

    allocator: str
    at_s: float
    kind: str
    text: str


class LinkUse(Document):
    """The link of a run, and the bytes and packets that went through it (live runs that weren't cut short)."""

    kind: str | None
    privilege: str | None
    agents: list[AgentCounters] = []
    direct_packets: int | None = None
    refused_connections: int | None = None
    refused_requests: int | None = None


class NodeUse(Document):
    """A Ray node of a run beside the station, and the network between the two; rates are of what TCP carries.

    Attributes:
        hosts, workers: numbers of actors.
        up_mbps, down_mbps, round_trip_ms: before the run, to the station and from it.
        least_mbps, most_round_trip_ms: of the checks during the run, beside the run's own traffic; None: not checked.
        clock_error_ms: the most by which a process's clock was found wrong; clock_uncertainty_ms: half of the longest
            round trip by which that was found out.
        stolen: share of the node's CPU time that its host gave to others.
        slow: how the network has become too slow for the run; empty: it hasn't.
    """

    address: str
    hostname: str
    hosts: int
    workers: int
    up_mbps: float | None = None
    down_mbps: float | None = None
    round_trip_ms: float | None = None
    least_mbps: float | None = None
    most_round_trip_ms: float | None = None
    clock_error_ms: float | None = None
    clock_uncertainty_ms: float | None = None
    stolen: float = 0.0
    slow: str = ""


class Summary(Document):
    """`summary.json`: what came of a run.

    Attributes:
        partial: whether the run was cut short; valid: whether the emulator itself kept its times.
        workers: for each cloud worker, requests by what became of them.
        memory_mb: the most memory that each actor used, by kind of actor (live only).
        nodes: the Ray nodes beside the station; relay: what the station's relay counted (runs over several nodes only).
    """

    title: str
    scenario: str
    engine: str
    run_dir: str
    partial: bool
    valid: bool
    warnings: list[str]
    footnote: str
    quality_bases: list[str]
    scheduled: int = 0
    issued: int
    allocators: dict[str, AllocatorSummary]
    ready_s: float
    events: list[TimelineEvent]
    workers: list[dict[str, int]]
    memory_mb: dict[str, list[dict[str, float]]]
    verified: LinkVerification | None
    link: LinkUse
    nodes: list[NodeUse] = []
    relay: dict[str, int] = {}


class Bound(Document):
    """What no allocator can exceed in a run: met in percent, delivered quality; each by itself.

    See `allocator.bench.hindsight`.
    """

    compliance: float
    delivered_quality: float


class ComparedRun(Document):
    """One run of a comparison; `point` has the value of every key that was swept."""

    folder: str
    seed: int
    point: dict[str, Any]
    bound: Bound | None = None


class ComparisonRuns(Document):
    """`compare.json`: the runs of a comparison that have been made so far."""

    scenario: str
    engine: str
    command: str | None = None
    machine: Machine | None = None
    compared: list[str]
    planned: int
    runs: list[ComparedRun]


class Interval(Document):
    """A mean over runs and its 95 % interval."""

    mean: float
    low: float
    high: float


class AllocatorFigures(Outcomes):
    """An allocator at one point of a sweep, over all seeds; compliance in percent."""

    compliance: Interval
    delivered_quality: Interval


class Verdict(Interval):
    """Whether the first allocator is better than the second in a metric: see `reports.statistics.Difference`."""

    metric: Metric
    first: str
    second: str
    p: float
    holm_p: float
    verdict: str


class ComparisonPoint(Document):
    """Figures and verdicts of one combination of swept values; `bound`: the mean over its runs, where all have one."""

    point: dict[str, Any]
    seeds: int
    figures: dict[str, AllocatorFigures]
    verdicts: list[Verdict]
    bound: Bound | None = None

    def regret(self, name: str) -> tuple[float, float] | None:
        """What an allocator is below the bound: points of met, and of delivered quality; None without a bound."""
        if self.bound is None:
            return None
        f = self.figures[name]
        return self.bound.compliance - f.compliance.mean, self.bound.delivered_quality - f.delivered_quality.mean

    def swept(self) -> str:
        """`key value, key value`; empty where nothing was swept."""
        return ", ".join(f"{key} {value}" for key, value in self.point.items())


class Comparison(Document):
    """What a folder of runs says when it is read: statistics over seeds, and what was left out."""

    scenario: str
    command: str | None
    engine: str
    machine: Machine | None
    compared: list[str]
    folders: list[str]
    warnings: list[str]
    points: list[ComparisonPoint]


class RelativeError(Document):
    """|simulated - live| / live of the latency of requests answered in both; None where there are none."""

    median: float | None
    p95: float | None


class BothEngines(Document):
    """One figure, live and simulated."""

    live: float
    simulated: float


class Deviation(Document):
    """How far one allocator's simulated turn is from its live one, request by request.

    Attributes:
        bias: the signed median of the relative latency error.
        compliance_difference: simulated - live, in percentage points; delivered_difference: of mean delivered quality.
        parted: share of requests whose mode or status differs; first_parted: the first of them.
        stages_ms: mean live - simulated of every stage's duration, largest first.
        ttft_error: as latency_error, of the time to the first token; None where answers came whole.
    """

    requests: int
    answered_in_both: int
    latency_error: RelativeError
    bias: float | None
    compliance: BothEngines
    compliance_difference: float
    delivered_difference: float
    parted: float
    first_parted: list[int]
    stages_ms: dict[str, float]
    ttft_error: RelativeError | None = None


class Fidelity(Document):
    """`fidelity.json`: a scenario live and simulated; `live_again`: a second live run against the first."""

    title: str
    scenario: str
    partial: bool
    valid: bool
    warnings: list[str]
    ask_ms: dict[str, float]
    allocators: dict[str, Deviation]
    live_again: dict[str, Deviation]
    live: Summary
    simulated: Summary
    footnote: str


class WorkloadLengths(Document):
    """Lengths of contexts or answers, in tokens."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: int


class WorkloadSummary(Document):
    """What a workload is like.

    Attributes:
        gaps_cv: standard deviation of the times between requests by their mean.
        blocks_seen_before: share of prefix blocks that an earlier request had as well, where the file names blocks.
    """

    source: str
    requests: int
    span_s: float
    rate_per_s: float | None
    gaps_cv: float | None
    context_tokens: WorkloadLengths
    output_tokens: WorkloadLengths
    blocks_seen_before: float | None


class PolicyCell(Document):
    """One cell of `scout bench policies`.

    Attributes:
        prompts: whether prompts may be sent, beside caches.
        cloud_load: worker time that prompts alone would take, as a share of what there is.
    """

    uplink: str
    workload: str
    prompts: bool
    cloud_load: float
    loss_percent: float

    def name(self) -> str:
        """For tables and messages."""
        modes = "prompts" if self.prompts else "caches"
        loss = f", loss {self.loss_percent:g} %" if self.loss_percent else ""
        return f"{self.uplink}, {self.workload}, {modes}, {self.cloud_load:g}{loss}"


class PolicyScore(Document):
    """Of one policy in one run: met in percent of the scheduled requests, and mean delivered quality."""

    met: float
    delivered: float


class PolicyUnit(Document):
    """One run: a cell, by its place in the list, with one seed; policies that can't serve the cell are left out."""

    cell: int
    seed: int
    requests: int
    scores: dict[str, PolicyScore]
    bound: Bound | None


class PolicyBench(Document):
    """`policies.json`: the runs of `scout bench policies` that have been made so far, in the order of cell and seed.

    Attributes:
        judged: the policy that is compared with the trivial ones.
        files: users' own uplinks and workloads, by the names that cells use.
    """

    command: str
    machine: Machine
    judged: str
    trivial: list[str]
    policies: list[str]
    duration_s: float
    seeds: list[int]
    files: dict[str, str]
    cells: list[PolicyCell]
    units: list[PolicyUnit]

    def planned(self) -> int:
        """How many runs there will be."""
        return len(self.cells) * len(self.seeds)
