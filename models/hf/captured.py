"""Memory-bound decoding: preallocated caches, few and fused kernels, a step captured as one CUDA graph.

A plain call of a 7B model launches more than a thousand small kernels per token, and the GPU idles between them. Here
the step of the known decoder layer (RMS norm, rotary attention, gated SiLU) is written out: torch.compile fuses the
operations between matrix products, `splitkv` computes attention, and one call replays the whole step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn

from models.hf.decode import Answer, Answers, Start, check_start
from models.hf.loading import LoadedModel
from models.hf.splitkv import SplitAttention, attend_plain

LAYERS_KNOWN = ("llama", "mistral", "qwen2", "qwen3")
MIN_CAPACITY = 1024  # positions
BLOCK = 256  # positions by which buffers grow; a multiple of what attention splits them into

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last dimension, rounded where transformers rounds."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [batch, heads, head_dim] by cos and sin [batch, 1, head_dim]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    """Weights of one decoder layer; matrices multiplied by the same vector are concatenated."""

    norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


def before_attention(
    x: Tensor, added: Tensor, layer_norm: Tensor, qkv: Tensor, bias: Tensor | None,
    q_norm: Tensor | None, k_norm: Tensor | None, cos: Tensor, sin: Tensor,
    keys: Tensor, values: Tensor, slots: Tensor, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute the layer's input x + added [batch, hidden], and its query [batch, heads, head_dim].

    Writes keys and values to their slots. The sum is computed here to fuse with the norm.
    """
    batch, kv_heads, _, head_dim = keys.shape
    x = x + added
    projected = F.linear(norm(x, layer_norm, eps), qkv, bias).view(batch, -1, head_dim)
    query, key, value = projected.split((projected.shape[1] - 2 * kv_heads, kv_heads, kv_heads), 1)
    if q_norm is not None and k_norm is not None:
        query, key = norm(query, q_norm, eps), norm(key, k_norm, eps)
    rows = torch.arange(batch, device=x.device)
    keys[rows, :, slots] = rotate(key, cos, sin)
    values[rows, :, slots] = value
    return x, rotate(query, cos, sin)


def after_attention(
    x: Tensor, attended: Tensor, out: Tensor, out_bias: Tensor | None, mlp_norm: Tensor,
    gate_up: Tensor, gate_up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Two summands of the layer's output [batch, hidden], from its input and the attention's output."""
    x = x + F.linear(attended, out, out_bias)
    gate, up = F.linear(norm(x, mlp_norm, eps), gate_up, gate_up_bias).chunk(2, -1)
    return x, F.linear(F.silu(gate) * up, down, down_bias)


def concatenated(*linears: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Concatenate the weights and biases of linear layers; the layers keep views, so nothing is stored twice."""
    weights: list[Tensor] = [linear.weight for linear in linears]
    weight = torch.cat(weights)
    for linear, part in zip(linears, weight.split([linear.out_features for linear in linears]), strict=True):
        linear.weight = nn.Parameter(part, requires_grad=False)
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    return weight, torch.cat(biases) if biases else None


def layer_of(module: Any) -> Layer:
    """The weights of one of transformers' decoder layers, of the types in LAYERS_KNOWN."""
    attention, mlp = module.self_attn, module.mlp
    qkv, qkv_bias = concatenated(attention.q_proj, attention.k_proj, attention.v_proj)
    gate_up, gate_up_bias = concatenated(mlp.gate_proj, mlp.up_proj)
    return Layer(
        module.input_layernorm.weight, qkv, qkv_bias,
        getattr(getattr(attention, "q_norm", None), "weight", None),
        getattr(getattr(attention, "k_norm", None), "weight", None),
        attention.o_proj.weight, attention.o_proj.bias, module.post_attention_layernorm.weight,
        gate_up, gate_up_bias, mlp.down_proj.weight, mlp.down_proj.bias,
    )  # fmt: skip


@dataclass(eq=False, slots=True)
class Session:
    """The buffers that a captured step reads and writes, for one batch size."""

    token: Tensor  # int64 [batch], each tensor
    position: Tensor
    slot: Tensor
    caches: list[tuple[Tensor, Tensor]]  # [batch, kv_heads, capacity, head_dim]
    attend: Attend
    graph: torch.cuda.CUDAGraph | None = None


def grown(needed: int, room: int) -> int:
    """The capacity, in positions, of buffers for `needed`, where they have `room`: whole blocks, seldom another size.

    Every size is compiled and captured anew, so buffers grow by a quarter at least. A fresh one has at most a block too
    much; a power of two would leave up to half of it idle.
    """
    if needed <= room:
        return room
    return -(-max(needed, MIN_CAPACITY, room + room // 4) // BLOCK) * BLOCK


class CapturedDecoder:
    """Greedy decoding of one model by captured steps, one batch at a time; without a GPU, the same steps uncaptured.

    Batches are padded to a power of two. The first batch of a size, and the first that needs more positions than all
    before it, take seconds to compile and capture; `warm_up` does that in advance.

    Attributes:
        reason: why steps are not compiled; empty if they are.
    """

    name = "captured"

    def __init__(self, loaded: LoadedModel, compiled: bool = True) -> None:
        """Raises ValueError if this decoder doesn't support the model."""
        self._loaded = loaded
        if reason := self.unsuited(loaded):
            raise ValueError(f"{loaded.spec.name}: {reason}")
        inner: Any = loaded.model.model
        self._embed, self._rotary, self._norm = inner.embed_tokens, inner.rotary_emb, inner.norm
        self._head: Any = loaded.model.lm_head
        self._eps = float(loaded.model.config.rms_norm_eps)
        self._scale = float(inner.layers[0].self_attn.scaling)
        self._layers = [layer_of(module) for module in inner.layers]
        self._on_gpu = loaded.device.type == "cuda"
        self.reason = "" if compiled and self._on_gpu else "asked not to compile" if self._on_gpu else "not on a GPU"
        self._before, self._after = before_attention, after_attention
        if not self.reason:
            self._before = torch.compile(before_attention, dynamic=False, fullgraph=True)
            self._after = torch.compile(after_attention, dynamic=False, fullgraph=True)
        self._sessions: dict[int, Session] = {}
        self._storage: list[tuple[Tensor, Tensor]] = []
        self._room = (0, 0)  # batch, positions
        self._lock = Lock()  # agents of one process share a decoder and its buffers

    @staticmethod
    def unsuited(loaded: LoadedModel) -> str:
        """Why this decoder doesn't support the model on its device; empty if it does."""
        config: Any = loaded.model.config
        if config.model_type not in LAYERS_KNOWN:
            return f"layers of {config.model_type} are not known; {', '.join(LAYERS_KNOWN)} are"
        if config.hidden_act != "silu":
            return f"the activation is {config.hidden_act}, not silu"
        rope = (config.rope_parameters or {}).get("rope_type", "default")
        if rope in ("dynamic", "longrope"):
            return f"{rope} rotations depend on the length, which a captured step doesn't know"
        return SplitAttention.unsuited(loaded.geometry.head_dim) if loaded.device.type == "cuda" else ""

    @torch.no_grad()
    def warm_up(self, batch: int, positions: int) -> None:
        """Compile and capture for batches of up to `batch`, each of up to `positions` (new tokens included)."""
        self._reserve(batch, positions)
        size = 1
        while size <= self._room[0]:
            self._session(size)
            size *= 2

    @torch.no_grad()
    def decode(self, starts: Sequence[Start]) -> list[Answer]:
        if not starts:
            return []
        for start in starts:
            check_start(self._loaded, start)
        with self._lock:
            return self._decode(starts)

    def _decode(self, starts: Sequence[Start]) -> list[Answer]:
        size = 1 << (len(starts) - 1).bit_length()
        self._reserve(size, max(start.cache.kept + start.max_new_tokens for start in starts))
        session = self._session(size)
        for row, start in enumerate(starts):
            for (keys, values), layer in zip(session.caches, start.cache.layers, strict=True):
                keys[row, :, : start.cache.kept] = layer[0]
                values[row, :, : start.cache.kept] = layer[1]
        idle = [0] * (size - len(starts))  # padding rows of the batch: one token, at position 0
        for state, numbers in (
            (session.token, [start.token for start in starts]),
            (session.position, [start.cache.length for start in starts]),
            (session.slot, [start.cache.kept for start in starts]),
        ):
            state.copy_(torch.tensor(numbers + idle))
        answers = Answers(starts, self._loaded)
        more = True
        while more:
            if session.graph is None:
                self._step(session)
            else:
                session.graph.replay()
            more = answers.take(session.token.tolist())
        return answers.answers()

    def _step(self, session: Session) -> None:
        """Advance each sequence by one token."""
        x = self._embed(session.token)
        added = torch.zeros_like(x)
        cos, sin = self._rotary(x, session.position[:, None])
        for w, (keys, values) in zip(self._layers, session.caches, strict=True):
            x, query = self._before(
                x, added, w.norm, w.qkv, w.qkv_bias, w.q_norm, w.k_norm, cos, sin, keys, values, session.slot, self._eps
            )
            attended = session.attend(query, keys, values, session.slot, self._scale).flatten(1)
            x, added = self._after(
                x, attended, w.out, w.out_bias, w.mlp_norm, w.gate_up, w.gate_up_bias, w.down, w.down_bias, self._eps
            )
        session.token.copy_(self._head(self._norm(x + added)).argmax(-1))
        session.position += 1
        session.slot.add_(1).clamp_(max=self._room[1] - 1)  # finished and padding rows continue with the others

    def _reserve(self, batch: int, positions: int) -> None:
        """Grow the buffers if needed; this discards the captured sessions."""
        if batch <= self._room[0] and positions <= self._room[1]:
            return
        batch = 1 << (max(batch, self._room[0]) - 1).bit_length()
        positions = grown(positions, self._room[1])
        self._sessions.clear()
        self._storage.clear()
        g = self._loaded.geometry
        shape = (batch * g.kv_heads * positions * g.head_dim,)
        for _ in range(g.layers):  # zeros, because attention without Triton multiplies masked values
            pair = [torch.zeros(shape, dtype=g.dtype, device=self._loaded.device) for _ in range(2)]
            self._storage.append((pair[0], pair[1]))
        self._room = batch, positions

    def _session(self, batch: int) -> Session:
        if batch in self._sessions:
            return self._sessions[batch]
        g, device, positions = self._loaded.geometry, self._loaded.device, self._room[1]
        shape = (batch, g.kv_heads, positions, g.head_dim)
        size = batch * g.kv_heads * positions * g.head_dim
        caches = [(keys[:size].view(shape), values[:size].view(shape)) for keys, values in self._storage]
        token, position, slot = (torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(3))
        heads = int(self._loaded.model.config.num_attention_heads)
        attend: Attend = attend_plain
        if self._on_gpu:
            attend = SplitAttention(batch, heads, g.kv_heads, g.head_dim, positions, device)
        session = Session(token, position, slot, caches, attend)
        if self._on_gpu:
            self._capture(session)
        self._sessions[batch] = session
        return session

    def _capture(self, session: Session) -> None:
        """Compile by running the step, then capture it; `decode` overwrites the state."""
        stream = torch.cuda.Stream(self._loaded.device)
        stream.wait_stream(torch.cuda.current_stream(self._loaded.device))
        # Every model, batch size and capacity is a variant of the same two functions.
        with torch.cuda.stream(stream), torch._dynamo.config.patch(recompile_limit=256):
            try:
                self._step(session)
            except Exception as error:  # capture still works without a compiler
                if self.reason:
                    raise
                self.reason = f"not compiled: {' '.join(str(error).split())[:200]}"
                self._before, self._after = before_attention, after_attention
            self._step(session)
        torch.cuda.current_stream(self._loaded.device).wait_stream(stream)
        session.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(session.graph):
            self._step(session)
