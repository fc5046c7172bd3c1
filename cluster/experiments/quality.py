"""`scout quality`: what quantization, selection and scouting do to the answers of two real models."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from kvcache.modes import MIXED, Mode
from kvcache.plans import Plan, quantized
from kvcache.selection import SELECTIONS, Selection
from kvcache.selection.q2c import Q2C, Q2CPooled
from models.datasets import Example
from models.f1 import mean_interval
from models.hf.decode import Start
from models.hf.edge import EdgeModel, Prefilled
from models.hf.loading import LoadedModel, same_tokenizer
from models.hf.measure import fitting
from models.hf.prompts import Prompt, prompt_of, text_of
from models.tasks import QA, Task
from reports.machine import describe_machine

RETENTIONS = (0.75, 0.5, 0.25, 0.1)
SIDES = ("edge", "cloud")
ALONE = "alone"

Figures = dict[str, Any]
Key = tuple[str | float, ...]
SCOUTS = (Q2C.name, Q2CPooled.name)


class Comparison:
    """Asks two models the same questions in many ways.

    One prefill a model and example serves all of them, and what they come to is decoded as one batch, so there are no
    stage times here (`scout calibrate` measures them).

    Args:
        plan: of the edge's layers, for `mixed_int4`.

    Raises:
        ValueError: models with different tokenizers, or `mixed_int4` without a plan.
    """

    def __init__(
        self,
        edge: LoadedModel,
        cloud: LoadedModel,
        modes: Sequence[Mode],
        plan: Plan | None = None,
        max_new_tokens: int | None = None,
        task: Task = QA,
    ) -> None:
        if not same_tokenizer(edge, cloud):
            raise ValueError(f"positions of {edge.spec.name} mean nothing to {cloud.spec.name}: other tokenizers")
        if plan is None and any(mode.quantizer == MIXED for mode in modes):
            raise ValueError(f"{MIXED} needs a plan of layers")
        self._models = {"edge": EdgeModel(edge), "cloud": EdgeModel(cloud)}
        self._modes, self._plan, self._task = modes, plan, task
        self._new = max_new_tokens or task.answer_tokens
        self._selections: dict[str, Selection] = {name: make() for name, make in SELECTIONS.items()}
        self._scores: dict[Key, list[float]] = {}

    def run(self, examples: Sequence[Example], progress: Callable[[str], None] = lambda line: None) -> Figures:
        """All examples; fit for JSON. F1, overlaps and shares are in percent.

        Raises:
            ValueError: no example that both models take; before anything is measured.
        """
        loaded = (model.loaded for model in self._models.values())
        examples = fitting(examples, self._task, self._new, *loaded, progress=progress)
        for number, example in enumerate(examples):
            if number % 50 == 0:
                progress(f"example {number} of {len(examples)}")
            self._ask(example)
        return {
            "machine": describe_machine(),
            "edge": self._models["edge"].loaded.spec.name,
            "cloud": self._models["cloud"].loaded.spec.name,
            "dtype": self._models["edge"].loaded.spec.dtype,
            "examples": len(examples),
            "mixed_int4_plan": None if self._plan is None else list(self._plan),
            "modes": [
                *({"mode": f"{side} {ALONE}", **self._percent(side, ALONE)} for side in SIDES),
                *({"mode": str(mode), **self._percent("mode", str(mode))} for mode in self._modes),
            ],
            "selections": [
                {"cache": side, "selection": name, "retention": retention, **self._percent(side, name, retention)}
                for side in SIDES
                for name in self._selections
                for retention in RETENTIONS
            ],
            "scouting": [self._scouting(name, retention) for name in SCOUTS for retention in RETENTIONS],
            "kept_of_answers": [
                {
                    "cache": side,
                    "selection": name,
                    "retention": retention,
                    "first_token": self._percent("first", side, name, retention),
                    "all_tokens": self._percent("all", side, name, retention),
                }
                for side in SIDES
                for name in SCOUTS
                for retention in RETENTIONS
            ],
        }

    def _ask(self, example: Example) -> None:
        prompt = prompt_of(self._models["edge"].loaded, example.context, example.question, self._task)
        chosen = list(self._selections.values())
        found = {side: model.prefill(prompt, chosen) for side, model in self._models.items()}
        kept = {
            (side, name, retention): selection.select(found[side].scores[name], retention, prompt.query)
            for side in SIDES
            for name, selection in self._selections.items()
            for retention in RETENTIONS
        }
        starts: dict[str, dict[Key, Start]] = {side: {(side, ALONE): self._start(found[side])} for side in SIDES}
        for (side, name, retention), positions in kept.items():
            starts[side][side, name, retention] = self._start(found[side], positions)
            if side == "edge" and name in SCOUTS:
                starts["cloud"]["scout", name, retention] = self._start(found["cloud"], positions)
        for mode in self._modes:
            side = "cloud" if mode.is_question else "edge"
            starts[side]["mode", str(mode)] = self._mode_start(mode, found["edge"], found[side])
        for side, model in self._models.items():
            answers = model.decoder.decode(list(starts[side].values()))
            for key, answer in zip(starts[side], answers, strict=True):
                text = text_of(model.loaded, answer.tokens, self._task)
                self._note(self._task.score(text, example.answers).f1, *key)
        self._agreement(kept, prompt.context)
        self._evidence(kept, prompt, example)

    def _start(self, found: Prefilled, kept: Tensor | None = None) -> Start:
        return Start(found.handover(kept), found.last_token, self._new, self._task.one_line)

    def _mode_start(self, mode: Mode, edge: Prefilled, owner: Prefilled) -> Start:
        """Where an answer in this mode goes on: positions are the edge's, the cache is its owner's."""
        positions = None
        if mode.selection is not None:
            selection = self._selections[mode.selection]
            positions = selection.select(edge.scores[mode.selection], mode.retention, edge.query)
        start = self._start(owner, positions)
        if not mode.is_cache:
            return start
        plan = self._plan if mode.quantizer == MIXED else mode.quantizer
        assert plan is not None
        return Start(quantized(start.cache, plan), start.token, self._new, self._task.one_line)

    def _agreement(self, kept: dict[tuple[str, str, float], Tensor], context: int) -> None:
        """How many of the edge's positions the cloud chooses too; by chance, it would be the share that is kept."""
        for name in SCOUTS:
            for retention in RETENTIONS:
                a, b = kept["edge", name, retention], kept["cloud", name, retention]
                if 0 < len(a) < context:
                    share, chance = float(torch.isin(a, b).float().mean()), len(a) / context
                    self._note(share, "overlap", name, retention)
                    self._note((share - chance) / (1 - chance), "beyond", name, retention)

    def _evidence(self, kept: dict[tuple[str, str, float], Tensor], prompt: Prompt, example: Example) -> None:
        """Whether the first token, and all tokens, of a longer answer are kept somewhere in the context."""
        places = (place for answer in example.answers for place in prompt.places_of(answer, example.context))
        spots = [place for place in places if len(place) > 1]
        if not spots:
            return
        for (side, name, retention), positions in kept.items():
            if name in SCOUTS:
                there = set(positions.tolist())
                self._note(any(spot[0] in there for spot in spots), "first", side, name, retention)
                self._note(any(there.issuperset(spot) for spot in spots), "all", side, name, retention)

    def _scouting(self, name: str, retention: float) -> Figures:
        """Pruning the cloud's cache by the edge's positions against pruning it by the cloud's own."""
        theirs, own = self._scores["scout", name, retention], self._scores["cloud", name, retention]
        pairs = list(zip(self._scores["edge", ALONE], theirs, own, strict=True))
        return {
            "selection": name,
            "retention": retention,
            "scout": percent(theirs),
            "own": percent(own),
            "difference": percent([a - b for _, a, b in pairs]),
            "difference_where_edge_is_right": percent([a - b for edge, a, b in pairs if edge == 1]),
            "difference_where_edge_is_wrong": percent([a - b for edge, a, b in pairs if edge < 1]),
            "overlap": self._percent("overlap", name, retention),
            "overlap_beyond_chance": self._percent("beyond", name, retention),
        }

    def _note(self, score: float, *key: str | float) -> None:
        self._scores.setdefault(key, []).append(float(score))

    def _percent(self, *key: str | float) -> Figures:
        return percent(self._scores.get(key, []))


def percent(scores: Sequence[float]) -> Figures:
    """Mean and 95 % bootstrap interval, times 100, and of how many; None where there are no scores."""
    if not scores:
        return {"mean": None, "interval": None, "of": 0}
    low, high = mean_interval(scores, np.random.default_rng(0))
    return {"mean": 100 * fmean(scores), "interval": [100 * low, 100 * high], "of": len(scores)}


def show(console: Console, found: Figures) -> None:
    """Print what a `Comparison` found: modes, selections on either cache, scouting, and what became of answers."""
    console.print(
        f"edge {found['edge']}, cloud {found['cloud']}, {found['dtype']}, {found['examples']} examples; "
        "percent (95 % interval)",
        highlight=False,
    )
    _title(console, "F1 by mode: caches are decoded by the edge's model, prompt and scout by the cloud's")
    table = _table("mode", "F1")
    for row in found["modes"]:
        table.add_row(row["mode"], _cell(row))
    console.print(table)
    for side in SIDES:
        _title(console, f"F1 by selection and share kept, on the {side}'s own cache")
        _by_retention(console, found["selections"], side, {"": None})
    for name in SCOUTS:
        _title(console, f"The cloud's cache, pruned by the {name} of the edge (scout) or of the cloud itself (own)")
        table = _table(
            "kept", "scout", "own", "difference", "where edge right", "where edge wrong", "overlap", "beyond chance"
        )
        for row in found["scouting"]:
            if row["selection"] == name:
                keys = "difference", "difference_where_edge_is_right", "difference_where_edge_is_wrong"
                means = [row[key]["mean"] for key in ("scout", "own", "overlap", "overlap_beyond_chance")]
                cells = ["-" if mean is None else f"{mean:.1f}" for mean in means]
                cells[2:2] = [_cell(row[key]) for key in keys]
                table.add_row(f"{row['retention']:.0%}", *cells)
        console.print(table)
    _title(console, "Answers of several tokens that stand in the context: how many keep their first, how many all")
    for side in SIDES:
        parts = {"first": "first_token", "all": "all_tokens"}
        _by_retention(console, found["kept_of_answers"], side, parts)


def _by_retention(console: Console, rows: list[Figures], side: str, parts: Mapping[str, str | None]) -> None:
    """A line for each selection (and part), a column for each retention."""
    table = _table(f"{side}: kept", *(f"{retention:.0%}" for retention in RETENTIONS))
    mine = [row for row in rows if row["cache"] == side]
    for name in dict.fromkeys(row["selection"] for row in mine):
        for label, part in parts.items():
            cells = (_cell(row[part] if part else row) for row in mine if row["selection"] == name)
            table.add_row(f"{name} {label}".strip(), *cells)
    console.print(table)


def _title(console: Console, text: str) -> None:
    console.print(text, style="bold", highlight=False)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _cell(figures: Figures) -> str:
    if figures["mean"] is None:
        return "-"
    mean, low, high = (round(x, 1) + 0.0 for x in (figures["mean"], *figures["interval"]))  # no -0.0
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"
