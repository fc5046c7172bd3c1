"""Selections by the keys themselves, without any attention: what they choose doesn't depend on the question."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from kvcache.selection.base import RowDemand, Selection


class LayerMeans(ABC):
    """The mean over layers of a score of each position, computed from the keys of a layer."""

    def __init__(self, context: int) -> None:
        self._context = context
        self._sum: Tensor | None = None
        self._layers = 0

    def add(self, layer: int, probabilities: Tensor, first_row: int) -> None:
        return  # it asks for no rows

    def see(self, layer: int, query: Tensor, keys: Tensor, scale: float) -> None:
        scores = self.of_layer(query, keys, scale)[: self._context].float()
        self._sum = scores if self._sum is None else self._sum + scores
        self._layers += 1

    @abstractmethod
    def of_layer(self, query: Tensor, keys: Tensor, scale: float) -> Tensor:
        """Scores [context or more] of one layer; arguments as of `see`."""

    def scores(self) -> Tensor:
        if self._sum is None:
            raise ValueError("no keys were seen to score the context")
        return self._sum / self._layers


class _ByKeys(Selection):
    """Base of the selections here: they see keys and no rows of attention."""

    means: ClassVar[type[LayerMeans]]

    def rows(self, context: int, query: int) -> RowDemand:
        return RowDemand(0, keys=True)

    def collector(self, context: int, query: int) -> LayerMeans:
        return self.means(context)


class _Norms(LayerMeans):
    def of_layer(self, query: Tensor, keys: Tensor, scale: float) -> Tensor:
        return -keys.float().norm(dim=-1).mean(0)


class Knorm(_ByKeys):
    """Keep keys of small norm (Devoto et al. 2024), the global version: norms averaged over heads and layers."""

    name = "knorm"
    means = _Norms


class _Differences(LayerMeans):
    def of_layer(self, query: Tensor, keys: Tensor, scale: float) -> Tensor:
        directions = F.normalize(keys[:, : self._context].float(), dim=-1)
        anchor = directions.mean(1, keepdim=True)
        return -F.cosine_similarity(directions, anchor, dim=-1).mean(0)


class KeyDiff(_ByKeys):
    """Keep keys unlike the others (Park et al. 2025): little cosine similarity to the mean direction of the context's.

    The global version: similarities averaged over heads and layers.
    """

    name = "keydiff"
    means = _Differences


class _Expected(LayerMeans):
    def of_layer(self, query: Tensor, keys: Tensor, scale: float) -> Tensor:
        heads, n, _ = query.shape
        asked = query.float()
        mean = asked.mean(1, keepdim=True)
        spread = asked - mean
        covariance = spread.transpose(1, 2) @ spread / n
        k = keys[:, : self._context].float().repeat_interleave(heads // keys.shape[0], 0)
        logits = (k @ mean.transpose(1, 2))[..., 0] * scale
        logits = logits + 0.5 * scale**2 * ((k @ covariance) * k).sum(-1)
        return logits.softmax(-1).mean(0)


class ExpectedAttention(_ByKeys):
    """Expected attention (Devoto et al. 2025), a simple form: what queries like those of the prompt would attend to.

    Queries are taken as normal with the mean m and covariance S of the prompt's own rotated queries, so that a key k
    gets exp(m k / sqrt(d) + k S k / 2d), normalised over the context and averaged over heads and layers. The original
    takes queries before rotation, turns them by the mean rotation of future positions, and weighs by the values' norms.
    """

    name = "expected_attention"
    means = _Expected
