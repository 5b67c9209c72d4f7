"""What makes models traceable computes the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from prunec.backends.interpreter import execute
from prunec.frontends.torch import trace
from prunec.frontends.torch_adapters import traceable


class Strided(nn.Module):
    """A view by strides, of a value whose dimensions do not lie in memory as they are counted."""

    def __init__(self, size: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, x: Tensor) -> Tensor:
        heads = x.reshape(8, 6, 5).transpose(0, 1).view(6, 2, 4, 5)
        count = torch.div(3 * self.size[1], 3, rounding_mode="floor")  # as code may compute it
        return heads.as_strided((self.size[0], count, *self.size[2:]), self.stride) * 2


@pytest.mark.parametrize(
    ("size", "stride", "windows"),
    [
        ((6, 3, 4, 5), (5, 60, 30, 1), True),  # half over half
        ((6, 5, 4, 5), (5, 30, 30, 1), True),
        ((6, 2, 4, 5), (5, 120, 30, 1), False),  # as it is
        ((6, 1, 4, 5), (5, 60, 30, 1), False),  # fewer than there are
        ((6, 3, 2, 5), (5, 60, 30, 1), False),
        ((6, 3, 4, 5), (5, 31, 30, 1), False),
        ((6, 8, 5), (5, 30, 1), False),
        ((6, 2, 2, 2, 5), (5, 120, 60, 30, 1), True),  # within the pieces
        ((6, 2, 3, 2, 5), (5, 120, 30, 30, 1), True),
        ((6, 2, 4, 2, 3), (5, 120, 30, 2, 1), True),  # of the last dimension
    ],
)
def test_a_view_by_strides_is_taken_as_windows(
    size: Sequence[int], stride: Sequence[int], windows: bool
) -> None:
    module = Strided(size, stride)
    x = torch.randn(8, 30)
    before = torch.Tensor.as_strided
    with traceable(module):
        traced = trace(module, {"x": x})
    assert torch.Tensor.as_strided is before
    names = {op.name for op in traced.graph.ops}
    assert ("aten.unfold.default" in names) == windows
    assert ("aten.as_strided.default" in names) != windows
    (found,) = execute(traced.graph, {}, [{"x": x}])
    torch.testing.assert_close(torch.as_tensor(found["output"]), module(x), rtol=0, atol=0)
