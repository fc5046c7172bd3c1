"""`models.study.asking.Asker` as a Ray actor: it loads the models for itself."""

from collections.abc import Sequence

import ray

from kvcache.plans import Plan
from models.hf.device import use_device
from models.hf.loading import ModelSpec, load_model
from models.study.asking import Asker, Item
from models.study.rows import Outcome
from models.tasks import task_of


@ray.remote
class AskerActor:
    """One process with the models of a study.

    Args:
        task: by name.
        gpus: its share of a GPU.
    """

    def __init__(
        self, specs: Sequence[ModelSpec], task: str, max_new_tokens: int, plan: Plan | None, gpus: float
    ) -> None:
        use_device(gpus)
        edge, cloud = [*map(load_model, specs), None][:2]
        assert edge is not None
        self._asker = Asker(edge, cloud, task_of(task), max_new_tokens, plan)

    def ask(self, items: Sequence[Item]) -> list[Outcome]:
        return self._asker.ask(items)
