"""Building blocks that use less common operations, each what some real model does.

Like those of `blocks` they map [batch, time, hidden] to the like.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InOutLinear(nn.Module):
    """Two linear layers stored [in, out] and computed by addmm, as GPT-2 does."""

    def __init__(self, *, hidden: int, width: int, out: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(hidden, width))
        self.up_bias = nn.Parameter(torch.empty(width))
        self.down = nn.Parameter(torch.empty(width, out))
        self.down_bias = nn.Parameter(torch.empty(out))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(-1, x.shape[-1])
        y = F.gelu(torch.addmm(self.up_bias, flat, self.up))
        y = torch.addmm(self.down_bias, y, self.down)
        return y.view(x.shape[0], x.shape[1], -1)


class UnbindAttention(nn.Module):
    """Query, key and value from one layer seen as [3, heads, dim], as vision models do.

    `style` says how the scores are contracted.
    """

    def __init__(self, *, hidden: int, heads: int, dim: int, out: int, style: str) -> None:
        super().__init__()
        self.heads, self.dim, self.style = heads, dim, style
        self.qkv = nn.Linear(hidden, 3 * heads * dim)
        self.o = nn.Linear(heads * dim, out)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        parts = self.qkv(x).reshape(batch, time, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        attend = self.flat if "bmm" in self.style else self.attend
        y = attend(*parts.unbind(0))
        return self.o(y.transpose(1, 2).reshape(batch, time, -1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.style == "einsum":
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * self.dim**-0.5
            return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)
        return F.scaled_dot_product_attention(q, k, v)

    def flat(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """With batch and heads in one dimension."""
        batch, heads, time, dim = q.shape
        q, k, v = (t.reshape(batch * heads, time, dim) for t in (q, k, v))
        if self.style == "baddbmm":  # onto zeros of a computed size
            zeros = torch.zeros(heads * batch, time, time)
            scores = torch.baddbmm(zeros, q, k.transpose(1, 2), alpha=self.dim**-0.5)
        else:
            scores = torch.bmm(q, k.transpose(1, 2)) * self.dim**-0.5
        y = torch.bmm(F.softmax(scores, dim=-1, dtype=torch.float32), v)
        return y.view(batch, heads, time, dim)


class RepeatedHeads(nn.Module):
    """Grouped queries through repeat_interleave, values of another size than keys."""

    def __init__(
        self, *, hidden: int, kv: int, group: int, dim: int, value_dim: int, out: int
    ) -> None:
        super().__init__()
        self.kv, self.group, self.dim, self.value_dim = kv, group, dim, value_dim
        self.q = nn.Linear(hidden, kv * group * dim)
        self.k = nn.Linear(hidden, kv * dim)
        self.v = nn.Linear(hidden, kv * value_dim)
        self.o = nn.Linear(kv * group * value_dim, out)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.kv * self.group, self.dim)).transpose(1, 2)
        k = self.k(x).unflatten(-1, (self.kv, self.dim)).transpose(1, 2)
        v = self.v(x).unflatten(-1, (self.kv, self.value_dim)).transpose(1, 2)
        k, v = (t.repeat_interleave(self.group, dim=1) for t in (k, v))
        scores = q @ k.transpose(-1, -2) / self.dim**0.5
        y = scores.softmax(-1) @ v
        return self.o(y.permute(0, 2, 1, 3).flatten(2))


class GroupNormed(nn.Module):
    """A convolution, group norm and pooling over time."""

    def __init__(self, *, hidden: int, groups: int, width: int, out: int, pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.conv = nn.Conv1d(hidden, width, 1)
        self.norm = nn.GroupNorm(groups, width)
        self.out = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x.transpose(1, 2))))
        if self.pool == "mean":
            y = F.avg_pool1d(y, 3, stride=1, padding=1)
        else:  # the exporter gives max_pool1d a fixed length
            y = F.max_pool2d(y.unsqueeze(3), (3, 1), stride=1, padding=(1, 0)).squeeze(3)
        return self.out(y.transpose(1, 2))


class Glu(nn.Module):
    """A gated linear unit by torch's own function."""

    def __init__(self, *, hidden: int, width: int, out: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, 2 * width)
        self.down = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.glu(self.up(x), dim=-1))


class Stacked(nn.Module):
    """Branches of one width stacked and reduced; `kind` is how."""

    def __init__(self, *, hidden: int, width: int, out: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.left = nn.Linear(hidden, width)
        self.right = nn.Linear(hidden, width)
        self.mix = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.left(x), self.right(x)], dim=2)
        match self.kind:
            case "max":
                y = both.amax(dim=2)
            case "sum":
                y = both.sum(dim=2)
            case _:
                y = torch.where(both[:, :, 0] > 0, both[:, :, 0], both[:, :, 1] * 0.5)
        return self.mix(y)


class Reordered(nn.Module):
    """Channels in another order: by an index that is stored, rolled, or reversed."""

    def __init__(self, *, hidden: int, width: int, out: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.up = nn.Linear(hidden, width)
        self.down = nn.Linear(width, out)
        order = torch.arange(width).roll(width // 2)
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        match self.kind:
            case "index":
                y = y[:, :, self.order]
            case "roll":
                y = y.roll(1, dims=-1)
            case "flip":
                y = y.flip(-1)
            case "time":
                y = y.roll(1, dims=1)
        return self.down(torch.tanh(y))


class PairProduct(nn.Module):
    """All products of two features, flattened: an axis times itself when `same`."""

    def __init__(self, *, hidden: int, width: int, other: int, out: int, same: bool) -> None:
        super().__init__()
        self.left = nn.Linear(hidden, width)
        self.right = None if same else nn.Linear(hidden, other)
        self.mix = nn.Linear(width * (width if same else other), out)

    def forward(self, x: Tensor) -> Tensor:
        left = torch.tanh(self.left(x))
        right = left if self.right is None else self.right(x)
        return self.mix((left[..., :, None] * right[..., None, :]).flatten(-2))


class Cropped(nn.Module):
    """Some channels are padded away or cut off: the first `keep` of `width`, then zeros."""

    def __init__(self, *, hidden: int, width: int, keep: int, out: int) -> None:
        super().__init__()
        self.keep, self.missing = keep, width - keep
        self.up = nn.Linear(hidden, width)
        self.down = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.up(x)).narrow(-1, 0, self.keep)
        return self.down(F.pad(y, (0, self.missing)))
