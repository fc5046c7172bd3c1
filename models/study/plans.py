"""Plans of mixed precision for a real model, by the joint harm to its own answers, verified on other examples."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvcache.cache import KVCache
from kvcache.plans import Plan, joint_plan, quantized
from models.datasets import Example
from models.hf.decode import Start
from models.hf.edge import EdgeModel
from models.hf.loading import LoadedModel
from models.hf.prompts import prompt_of
from models.study.asking import answer_nlls
from models.tasks import Task

THRESHOLD = 0.02  # nats a token of the model's own answer


@dataclass(frozen=True, slots=True)
class FoundPlan:
    """A plan, and by how much it raises the negative log-likelihood (nats a token) of the model's own answers.

    Attributes:
        rise: on the examples that it was found with; held_out: on others.
    """

    plan: Plan
    rise: float
    held_out: float


@torch.no_grad()
def find_joint_plan(
    model: LoadedModel, examples: Sequence[Example], task: Task, max_new_tokens: int, threshold: float = THRESHOLD
) -> FoundPlan:
    """A plan for `mixed_int4` by `kvcache.plans.joint_plan`, found on half of the examples and verified on the other.

    If it doesn't hold there (twice the threshold), half the threshold is tried once; the rise on both is returned.

    Raises:
        ValueError: fewer than two examples.
    """
    if len(examples) < 2:
        raise ValueError("a plan takes at least two examples besides those that are measured")
    half = (len(examples) + 1) // 2
    seen, others = (_Answers(model, part, task, max_new_tokens) for part in (examples[:half], examples[half:]))
    for tried in (threshold, threshold / 2):
        plan = joint_plan(model.geometry.layers, seen.cost, tried)
        found = FoundPlan(plan, seen.rise(plan), others.rise(plan))
        if found.held_out <= 2 * threshold:
            break
    return found


class _Answers:
    """A model's own answers to some prompts, and what they cost from quantized caches."""

    def __init__(self, model: LoadedModel, examples: Sequence[Example], task: Task, max_new_tokens: int) -> None:
        self._model = model
        self._starts: list[Start] = []
        self._answers: list[tuple[int, ...]] = []
        edge = EdgeModel(model)
        for example in examples:
            found = edge.prefill(prompt_of(model, example.context, example.question, task))
            self._starts.append(Start(found.handover(), found.last_token))
            self._answers.append(edge.answer(found, max_new_tokens, task.one_line).tokens or (found.first_token,))
        self._layers: dict[tuple[int, int, str], tuple[torch.Tensor, torch.Tensor]] = {}

    def cost(self, plan: Plan) -> float:
        """The mean over answers."""
        starts = [Start(self._quantized(number, plan), start.token) for number, start in enumerate(self._starts)]
        nlls = answer_nlls(self._model, starts, self._answers)
        return sum(nlls) / len(nlls)

    def rise(self, plan: Plan) -> float:
        return self.cost(plan) - self.cost(("bf16",) * len(plan))

    def _quantized(self, number: int, plan: Plan) -> KVCache:
        cache = self._starts[number].cache
        for layer, name in enumerate(plan):
            if (number, layer, name) not in self._layers:
                alone = KVCache((cache.layers[layer],), cache.positions, cache.length)
                self._layers[number, layer, name] = quantized(alone, name).layers[0]
        layers = tuple(self._layers[number, layer, name] for layer, name in enumerate(plan))
        return KVCache(layers, cache.positions, cache.length)
