"""A scenario's settings for the real models of a group of agents. Imports nothing heavy."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from configs.settings import Settings
from models.tasks import TASKS, Task

TaskName = Literal["qa", "squad_v2", "needle", "multi_key", "choice", "summary"]  # of TASKS: a test compares them
ModelName = Annotated[str, Field(min_length=1, max_length=512)]


class ModelSettings(Settings):
    """An edge model, the cloud's model for it, and their examples.

    Request n asks example n modulo `count`. A cache is decoded in the cloud by the edge's own model; `prompt` and
    `scout` are answered by the cloud's.
    """

    edge: ModelName = Field(description="a hub name, a folder, a size of the small family (`family/tiny`), a shape")
    cloud: ModelName = Field(description="the cloud's model, in the same forms")
    weights: Literal["pretrained", "random"] = Field(
        default="pretrained", description="random: true in shape and time, answers mean nothing"
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="of both models; auto: bfloat16 on a GPU, float32 on a CPU"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where the actor has one")
    seed: int = Field(default=0, ge=0, lt=2**31, description="of examples and of random weights")
    examples: str = Field(default="family", description="`family`, a .json or .jsonl file, or a data set on the hub")
    count: int = Field(default=500, ge=1, le=200_000, description="examples asked about, one after the other")
    context_tokens: int = Field(default=1024, ge=1, le=2**20, description="of examples for models without words")
    task: TaskName = Field(default="qa", description="what the prompts say: a task of `scout characterize`")
    max_new_tokens: int | None = Field(default=None, ge=1, le=4096, description="of an answer; default: the task's")
    scout_prefill: Literal["prune", "kept"] = Field(
        default="prune", description="prune: the cloud prefills all and keeps the positions; kept: prefills only those"
    )

    @property
    def asked(self) -> Task:
        return TASKS[self.task]

    @property
    def answer_tokens(self) -> int:
        """The longest answer."""
        return self.max_new_tokens or self.asked.answer_tokens

    def source(self, name: str, base_dir: Path) -> str:
        """A model's name, or the path of the folder of that name below `base_dir`, if there is one."""
        folder = base_dir / name
        return str(folder) if folder.is_dir() else name
