"""Modules written by hand, one for each way in which channels can hang together.

`MODULES` gives for each the module, the shape of its input without the batch, and what can be
pruned: the sizes of its groups of more than one index, in ascending order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from blocks_rare import UnbindAttention
from torch import Tensor, nn
from torch.nn import functional as nnf

__all__ = ["MODULES", "Case"]


@dataclass(frozen=True)
class Case:
    """A module, its input, the groups that it has, and why the rest is pinned."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    groups: tuple[int, ...]
    pinned: str = ""


class ChannelShuffle(nn.Module):
    """ShuffleNet: two grouped convolutions with the channels dealt out anew between them."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Conv2d(3, 24, 1)
        self.first = nn.Conv2d(24, 24, 3, padding=1, groups=3)
        self.second = nn.Conv2d(24, 36, 3, padding=1, groups=3)
        self.out = nn.Conv2d(36, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(self.into(x)))
        b, c, h, w = y.shape
        y = y.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.out(torch.relu(self.second(y)))


class SqueezeExcite(nn.Module):
    """A factor for each channel, computed from the means of all."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Conv2d(3, 14, 3)
        self.norm = nn.BatchNorm2d(14)
        self.squeeze, self.excite = nn.Conv2d(14, 6, 1), nn.Conv2d(6, 14, 1)
        self.out = nn.Conv2d(14, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = nnf.silu(self.norm(self.into(x)))
        factor = self.excite(nnf.silu(self.squeeze(nnf.adaptive_avg_pool2d(y, 1))))
        return self.out(y * torch.sigmoid(factor))


class DenseBlock(nn.Module):
    """DenseNet: every layer reads what all before it have written."""

    def __init__(self) -> None:
        super().__init__()
        widths = (10, 18, 26)
        self.into = nn.Conv2d(3, 10, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.layers = nn.ModuleList(nn.Conv2d(width, 8, 3, padding=1) for width in widths)
        self.out = nn.Conv2d(34, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            y = torch.cat([y, layer(torch.relu(norm(y)))], 1)
        return self.out(nnf.avg_pool2d(y, 2))


class UNet(nn.Module):
    """Down and up again, with what was seen on the way down set beside what comes up."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 14, 3, padding=1)
        self.middle = nn.Conv2d(14, 22, 3, padding=1)
        self.up2, self.up1 = nn.ConvTranspose2d(22, 12, 2, 2), nn.ConvTranspose2d(16, 10, 2, 2)
        self.join2, self.join1 = nn.Conv2d(26, 16, 1), nn.Conv2d(18, 6, 1)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = torch.relu(self.down1(x))
        two = torch.relu(self.down2(nnf.max_pool2d(one, 2)))
        low = torch.relu(self.middle(nnf.max_pool2d(two, 2)))
        two = torch.relu(self.join2(torch.cat([two, self.up2(low)], 1)))
        one = torch.relu(self.join1(torch.cat([self.up1(two), one], 1)))
        return self.out(one)


class Separable(nn.Module):
    """MobileNet's inverted residual: widen, one filter a channel, narrow, add."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Conv2d(3, 10, 1)
        self.widen = nn.Conv2d(10, 28, 1, bias=False)
        self.norm = nn.BatchNorm2d(28)
        self.depthwise = nn.Conv2d(28, 28, 3, padding=1, groups=28)
        self.narrow = nn.Conv2d(28, 10, 1)
        self.grouped = nn.Conv2d(10, 20, 3, groups=2)
        self.out = nn.Conv2d(20, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x)
        wide = nnf.hardswish(self.norm(self.widen(y)))
        y = y + self.narrow(nnf.relu6(self.depthwise(wide)))
        return self.out(self.grouped(y))


class Transposed(nn.Module):
    """A decoder of transposed convolutions, one of them in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Conv2d(3, 18, 1)
        self.first = nn.ConvTranspose2d(18, 12, 3, stride=2, groups=2)
        self.second = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.norm = nn.InstanceNorm2d(8, affine=True)
        self.out = nn.ConvTranspose2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = nnf.leaky_relu(self.first(self.into(x)))
        return self.out(self.norm(self.second(y)))


class SuperResolution(nn.Module):
    """Channels become space by a pixel shuffle, and space becomes channels again."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Conv2d(3, 16, 3, padding=1)
        self.widen = nn.Conv2d(16, 20, 3, padding=1)
        self.after = nn.Conv2d(5, 7, 3, padding=1)
        self.out = nn.Conv2d(28, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = nnf.pixel_shuffle(self.widen(torch.relu(self.into(x))), 2)
        return self.out(nnf.pixel_unshuffle(torch.relu(self.after(y)), 2))


class Shared(nn.Module):
    """One block applied three times, and a layer read in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, 20), nn.Linear(20, 4)
        self.norm = nn.LayerNorm(20)
        self.up = nn.Linear(20, 36)

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x)
        for _ in range(3):
            y = y + nnf.gelu(self.up(self.norm(y))) @ self.up.weight
        return self.out(y)


class EinsumAttention(nn.Module):
    """Attention with weights of three dimensions, all of it in einsums."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, 22), nn.Linear(22, 4)
        for name in ("query", "key"):
            self.register_parameter(name, nn.Parameter(torch.empty(22, 5, 8)))
        self.value = nn.Parameter(torch.empty(22, 5, 9))
        self.merge = nn.Parameter(torch.empty(5, 9, 22))

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x)
        q = torch.einsum("btd,dhk->bhtk", y, self.query)
        k = torch.einsum("btd,dhk->bhtk", y, self.key)
        v = torch.einsum("btd,dhv->bhtv", y, self.value)
        shares = torch.einsum("bhqk,bhtk->bhqt", q, k).softmax(-1)
        return self.out(y + torch.einsum("bhqt,bhtv,hvd->bqd", shares, v, self.merge))


class Mixer(nn.Module):
    """MLP-Mixer: one MLP over the places, one over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 26, 4, 4)
        self.places, self.channels = nn.LayerNorm(26), nn.LayerNorm(26)
        self.place_up, self.place_down = nn.Linear(9, 15), nn.Linear(15, 9)
        self.up, self.down = nn.Linear(26, 44), nn.Linear(44, 26)
        self.head = nn.Linear(26, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        mixed = self.place_down(nnf.gelu(self.place_up(self.places(y).transpose(1, 2))))
        y = y + mixed.transpose(1, 2)
        y = y + self.down(nnf.gelu(self.up(self.channels(y))))
        return self.head(y.mean(1))


class Volume(nn.Module):
    """Convolutions over space and time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(2, 10, 3, padding=1), nn.BatchNorm3d(10)
        self.second = nn.Conv3d(10, 14, (1, 3, 3))
        self.skip = nn.Conv3d(2, 14, (1, 3, 3))
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.relu(self.norm(self.first(x)))) + self.skip(x)
        return self.head(nnf.adaptive_avg_pool3d(torch.relu(y), 1).flatten(1))


class Recurrent(nn.Module):
    """An LSTM between two layers: only the layer behind it has something to give."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(6, 10)
        self.lstm = nn.LSTM(10, 12, batch_first=True)
        self.up, self.out = nn.Linear(12, 18), nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(self.into(x))
        return self.out(torch.relu(self.up(y)))


class Perceiver(nn.Module):
    """Learned vectors ask the input by torch's own attention, its weights in one matrix or not."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(7, 24))
        self.into = nn.Linear(6, 16)
        self.cross = nn.MultiheadAttention(24, 3, kdim=16, vdim=16, batch_first=True)
        self.inner = nn.MultiheadAttention(24, 4, batch_first=True)
        self.norm = nn.LayerNorm(24)
        self.up, self.down = nn.Linear(24, 34), nn.Linear(34, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        data = self.into(x)
        y = self.latents.expand(x.shape[0], -1, -1)
        y = y + self.cross(y, data, data, need_weights=False)[0]
        y = y + self.inner(y, y, y, need_weights=False)[0]
        y = y + self.down(nnf.gelu(self.up(self.norm(y))))
        return self.head(y.mean(1))


class TorchEncoder(nn.Module):
    """torch's own transformer layers, by their default path."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(30, 5, 46, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.into, self.out = nn.Linear(6, 30), nn.Linear(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(self.into(x)))


IMAGE, WORDS = (3, 12, 12), (9, 6)


class ScoresOntoZeros(nn.Module):
    """Attention whose scores are added to zeros of a computed size."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(WORDS[-1], 30)
        self.attention = UnbindAttention(hidden=30, heads=6, dim=7, out=9, style="baddbmm")

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.attention(self.enter(x))
        return found


MODULES: dict[str, Case] = {
    "channel shuffle": Case(ChannelShuffle, IMAGE, (8, 12), "(8 3) meets (3 8)"),
    "squeeze and excite": Case(SqueezeExcite, IMAGE, (6, 14)),
    "dense connections": Case(DenseBlock, IMAGE, (8, 8, 8, 10)),
    "u-net": Case(UNet, IMAGE, (6, 8, 10, 12, 14, 16, 22)),
    "depthwise and grouped": Case(Separable, IMAGE, (2, 5, 10, 28)),
    "transposed": Case(Transposed, IMAGE, (2, 6, 8, 9)),
    "pixel shuffle": Case(SuperResolution, IMAGE, (5, 7, 16)),
    "shared layers": Case(Shared, WORDS, (20, 36)),
    "einsum attention": Case(EinsumAttention, WORDS, (5, 8, 9, 22)),
    "mixer": Case(Mixer, IMAGE, (15, 26, 44)),
    "volume": Case(Volume, (2, 4, 8, 8), (10, 14)),
    "recurrent": Case(Recurrent, WORDS, (18,), "holds the gates of all steps in one matrix"),
    "cross-attention": Case(Perceiver, WORDS, (3, 4, 6, 8, 16, 24, 34)),
    "scores onto zeros": Case(ScoresOntoZeros, WORDS, (6, 7, 30)),
    "torch's encoder": Case(TorchEncoder, WORDS, (5, 5, 6, 6, 30, 46, 46)),
}
