"""The network: a Llama-shaped causal language model with a key-value cache, in torch.

Shapes: B batch, S new tokens, P cached tokens, T = P + S, D width, H query heads,
K key-value heads, G = H / K query heads per key-value head, E = D / H, V vocabulary.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

MASKED = -1e9
"""Added to the score of a future token. Large on purpose: see README, static quantization."""

Cache: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values of one pass through a layer, each (B, K, P, E)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a network. `loops` is how often each layer is applied; its weights stay one."""

    width: int = 192
    layers: int = 3
    heads: int = 6
    kv_heads: int = 3
    feed_forward: int = 448
    vocabulary: int = 2048
    context: int = 256
    rope_base: float = 10_000.0
    loops: int = 1

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def kv_layers(self) -> int:
        """Cache entries: one for each time that a layer is applied."""
        return self.layers * self.loops


class RootMeanSquareNorm(nn.Module):
    """Scale (..., D) to unit root mean square, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
        return (wide * scale).to(x.dtype) * self.weight


class Attention(nn.Module):
    """Grouped-query attention, written out.

    Faster than the fused kernel on a CPU at this size, and exported as plain MatMul, Where, Add
    and Softmax.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.k_proj = nn.Linear(shape.width, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.width, kv_width, bias=False)
        self.o_proj = nn.Linear(shape.width, shape.width, bias=False)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, past: Cache | None
    ) -> tuple[Tensor, Cache]:
        """(B, S, D), cos and sin (S, E), mask (S, T) -> (B, S, D) and the longer cache."""
        query = rotate(self._split(self.q_proj(x)), rotation)
        key = rotate(self._split(self.k_proj(x)), rotation)
        value = self._split(self.v_proj(x))
        if past is not None:
            key = torch.cat((past[0], key), dim=2)
            value = torch.cat((past[1], value), dim=2)
        groups = self.shape.heads // self.shape.kv_heads
        keys = key.repeat_interleave(groups, dim=1)
        values = value.repeat_interleave(groups, dim=1)
        scores = query @ keys.transpose(2, 3) * self.shape.head_dim**-0.5 + mask
        mixed = torch.softmax(scores, dim=-1) @ values
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), (key, value)

    def _split(self, x: Tensor) -> Tensor:
        """(B, S, heads * E) -> (B, heads, S, E)."""
        return x.unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU on (B, S, D)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RootMeanSquareNorm(shape.width)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RootMeanSquareNorm(shape.width)
        self.mlp = FeedForward(shape)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, past: Cache | None
    ) -> tuple[Tensor, Cache]:
        attended, cache = self.self_attn(self.input_layernorm(x), rotation, mask, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class LanguageModel(nn.Module):
    """Token ids to next-token logits. The embedding is also the output matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RootMeanSquareNorm(shape.width)
        steps = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
        self.register_buffer("frequencies", shape.rope_base**-steps, persistent=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, past: list[Cache] | None = None) -> tuple[Tensor, list[Cache]]:
        """Ids (B, S) and the cache of P earlier tokens -> logits (B, S, V) and T tokens' cache."""
        cached = past[0][0].shape[2] if past else 0
        total = cached + ids.shape[1]
        positions = torch.arange(cached, total, device=ids.device).float()
        everything = torch.arange(total, device=ids.device).float()
        mask = torch.where(everything[None, :] > positions[:, None], MASKED, 0.0)
        rotation = self._rotation(positions)
        x = self.embed_tokens(ids)
        caches: list[Cache] = []
        for step in range(self.shape.kv_layers):
            layer = self.layers[step // self.shape.loops]
            x, cache = layer(x, rotation, mask, past[step] if past else None)
            caches.append(cache)
        return functional.linear(self.norm(x), self.embed_tokens.weight), caches

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (S, E) of the rotary position embedding."""
        angles = positions[:, None] * self.frequencies[None, :]
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of features of (B, heads, S, E) by its token's angles."""
    cos, sin = rotation
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin
