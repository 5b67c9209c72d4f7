"""Building blocks of random networks: modules that map [batch, time, hidden] to the like.

Each takes the sizes and variants it is built from as keywords, so that a network is described
by plain data. They write out in many ways what real models do, since each way gives another
program once exported.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "square": lambda x: F.relu(x).pow(2),
}


class Project(nn.Module):
    """A linear layer to another width."""

    def __init__(self, *, hidden: int, out: int, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Mlp(nn.Module):
    """Two linear layers; `gate` says how the factor beside the activation is computed."""

    def __init__(
        self, *, hidden: int, width: int, out: int, activation: str, gate: str, bias: bool
    ) -> None:
        super().__init__()
        fused = gate in ("chunk", "split", "slice", "view")
        self.activation, self.gate_kind, self.width = activation, gate, width
        self.up = nn.Linear(hidden, 2 * width if fused else width, bias=bias)
        self.gate = nn.Linear(hidden, width, bias=bias) if gate == "branch" else None
        self.down = nn.Linear(width, out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        up, factor = self.parts(x)
        y = ACTIVATIONS[self.activation](up)
        return self.down(y if factor is None else y * factor)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        up, n = self.up(x), self.width
        match self.gate_kind:
            case "branch":
                assert self.gate is not None
                return up, self.gate(x)
            case "chunk":
                return up.chunk(2, dim=-1)
            case "split":
                return up.split([n, n], dim=-1)
            case "slice":
                return up[..., :n], up[..., n:]
            case "view":
                both = up.view(*up.shape[:-1], 2, n)
                return both[..., 0, :], both[..., 1, :]
        return up, None


class TiedMlp(nn.Module):
    """An MLP whose second matrix is the first one transposed."""

    def __init__(self, *, hidden: int, width: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(width, hidden))

    def forward(self, x: Tensor) -> Tensor:
        y = ACTIVATIONS[self.activation](F.linear(x, self.weight))
        return torch.matmul(y, self.weight)


class Twice(nn.Module):
    """The same block, with the same weights, applied twice with a residual sum each."""

    def __init__(self, *, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.block(x)
        return x + self.block(x)


class Residual(nn.Module):
    """The sum of a block and its input."""

    def __init__(self, *, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Attention(nn.Module):
    """`kv` key-value heads of size `dim`, each with `group` query heads.

    `layout` says how the projections are stored: three layers, one layer with the three after
    one another, or one layer with the three of each key-value head together.
    """

    def __init__(
        self,
        *,
        hidden: int,
        kv: int,
        group: int,
        dim: int,
        out: int,
        layout: str,
        kernel: str,
        rotary: bool,
        normed: bool,
        causal: bool,
        bias: bool,
    ) -> None:
        super().__init__()
        self.kv, self.group, self.dim = kv, group, dim
        self.layout, self.kernel, self.causal = layout, kernel, causal
        heads = kv * group
        if layout == "separate":
            self.q = nn.Linear(hidden, heads * dim, bias=bias)
            self.k = nn.Linear(hidden, kv * dim, bias=bias)
            self.v = nn.Linear(hidden, kv * dim, bias=bias)
        else:
            self.qkv = nn.Linear(hidden, (heads + 2 * kv) * dim, bias=bias)
        self.o = nn.Linear(heads * dim, out, bias=bias)
        self.q_norm = RmsNorm(hidden=dim, offset=False) if normed else None
        self.k_norm = RmsNorm(hidden=dim, offset=False) if normed else None
        self.rotary = Rotary(dim=dim) if rotary else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads.transpose(1, 2) for heads in self.projected(x))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        y = self.attend(q, k, v).transpose(1, 2)
        return self.o(y.reshape(x.shape[0], x.shape[1], -1))

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value as [batch, time, heads, dim]."""
        batch, time, _ = x.shape
        kv, group, dim = self.kv, self.group, self.dim
        if self.layout == "per head":
            per_head = self.qkv(x).view(batch, time, kv, group + 2, dim)
            q = per_head[:, :, :, :-2].reshape(batch, time, kv * group, dim)
            return q, per_head[:, :, :, -2], per_head[:, :, :, -1]
        if self.layout == "fused":
            q, k, v = self.qkv(x).split([kv * group * dim, kv * dim, kv * dim], dim=-1)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        shape = (batch, time, -1, dim)
        return q.view(shape), k.view(shape), v.view(shape)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.kernel == "sdpa":
            gqa = self.group > 1
            return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=gqa)
        k, v = self.repeated(k), self.repeated(v)
        if self.kernel == "sdpa repeated":
            return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        scores = torch.matmul(q, k.transpose(2, 3)) * self.dim**-0.5
        if self.causal:
            time = q.shape[2]
            future = torch.ones(time, time, dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(future, -1e9)
        return torch.matmul(scores.softmax(dim=-1), v)

    def repeated(self, x: Tensor) -> Tensor:
        """Each key-value head once for each of its query heads."""
        if self.group == 1:
            return x
        batch, kv, time, dim = x.shape
        x = x[:, :, None].expand(batch, kv, self.group, time, dim)
        return x.reshape(batch, kv * self.group, time, dim)


class Rotary(nn.Module):
    """Rotary position embedding of [batch, heads, time, dim], the halves of `dim` in pairs."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        frequencies = 0.5 ** torch.arange(dim // 2)
        self.register_buffer("inv_freq", frequencies, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        at = torch.arange(x.shape[2], device=x.device, dtype=torch.float32)
        angles = at[:, None] * self.inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        half = x.shape[-1] // 2
        rotated = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        return x * angles.cos() + rotated * angles.sin()


class LayerNorm(nn.Module):
    def __init__(self, *, hidden: int, affine: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class RmsNorm(nn.Module):
    """Root mean square norm in its parts; `offset` scales by one more than the weight."""

    def __init__(self, *, hidden: int, offset: bool) -> None:
        super().__init__()
        self.offset = offset
        self.weight = nn.Parameter(torch.empty(hidden))

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return y * (1 + self.weight) if self.offset else self.weight * y


class Scale(nn.Module):
    """A factor and a summand for each channel."""

    def __init__(self, *, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden))
        self.bias = nn.Parameter(torch.empty(hidden))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) * self.weight + self.bias


class Statistic(nn.Module):
    """Subtract the mean or add the sum over the channels."""

    def __init__(self, *, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "mean":
            return x - x.mean(dim=-1, keepdim=True)
        return x + 0.1 * x.sum(-1).unsqueeze(-1)


class ChannelGate(nn.Module):
    """Squeeze and excite: channels are weighed by their means over time."""

    def __init__(self, *, hidden: int, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(hidden, width)
        self.excite = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.excite(F.relu(self.squeeze(x.mean(dim=1))))
        return x * torch.sigmoid(weight).unsqueeze(1)


class SoftmaxMix(nn.Module):
    """Mix learned vectors by weights that sum to one."""

    def __init__(self, *, hidden: int, width: int, out: int) -> None:
        super().__init__()
        self.key = nn.Linear(hidden, width)
        self.value = nn.Linear(width, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(self.key(x).softmax(dim=-1))


class Concat(nn.Module):
    """Branches of unlike widths side by side, then mixed; `keep` adds the input as a third."""

    def __init__(self, *, hidden: int, left: int, right: int, out: int, keep: bool) -> None:
        super().__init__()
        self.keep = keep
        self.left = nn.Linear(hidden, left)
        self.right = nn.Linear(hidden, right, bias=False)
        self.mix = nn.Linear(left + right + (hidden if keep else 0), out)

    def forward(self, x: Tensor) -> Tensor:
        parts = [F.silu(self.left(x)), self.right(x), *([x] if self.keep else [])]
        return self.mix(torch.cat(parts, dim=-1))


class Swap(nn.Module):
    """Split the channels in two unlike parts and put the second first."""

    def __init__(self, *, hidden: int, at: int, out: int) -> None:
        super().__init__()
        self.sizes = [at, hidden - at]
        self.mix = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split(self.sizes, dim=-1)
        return self.mix(torch.cat([b, F.gelu(a)], dim=-1))


class Shuffle(nn.Module):
    """See the channels as a matrix and transpose it."""

    def __init__(self, *, rows: int, columns: int, hidden: int, out: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.up = nn.Linear(hidden, rows * columns)
        self.down = nn.Linear(rows * columns, out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).view(x.shape[0], x.shape[1], self.rows, self.columns)
        return self.down(y.transpose(2, 3).flatten(2))


class TimeConv(nn.Module):
    """1-D convolutions along time: one in groups, one depthwise, one of kernel size 1."""

    def __init__(
        self, *, hidden: int, groups: int, width: int, out: int, depthwise: bool, bias: bool
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(hidden, width, 3, padding=1, groups=groups, bias=bias)
        self.depthwise = (
            nn.Conv1d(width, width, 3, padding=1, groups=width, bias=bias) if depthwise else None
        )
        self.out = nn.Conv1d(width, out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x.transpose(1, 2)))
        if self.depthwise is not None:
            y = y + self.depthwise(y)
        return self.out(y).transpose(1, 2)


class ImageConv(nn.Module):
    """2-D convolution over time and `columns`, which the channels are made of with `channels`."""

    def __init__(
        self,
        *,
        hidden: int,
        channels: int,
        columns: int,
        groups: int,
        width: int,
        out: int,
        norm: bool,
    ) -> None:
        super().__init__()
        self.channels, self.columns = channels, columns
        self.up = nn.Linear(hidden, channels * columns)
        self.conv = nn.Conv2d(channels, width, (3, 1), padding=(1, 0), groups=groups)
        self.norm = nn.BatchNorm2d(width) if norm else None
        self.down = nn.Linear(width * columns, out)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        y = self.up(x).view(batch, time, self.channels, self.columns).permute(0, 2, 1, 3)
        y = self.conv(y)
        y = F.relu(y if self.norm is None else self.norm(y))
        return self.down(y.permute(0, 2, 1, 3).reshape(batch, time, -1))
