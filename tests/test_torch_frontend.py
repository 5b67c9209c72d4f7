"""Tracing torch modules: names, ties, places, dynamic sizes, canonical operations, diagnostics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.nn import functional as nnf
from transformers import DynamicCache
from transformers.utils import ModelOutput

from prunec.backends.interpreter import execute
from prunec.backends.torch_module import to_fx
from prunec.frontends.torch import Traced, trace
from prunec.frontends.torch_hf import example_inputs, trace_hf
from prunec.ir.diagnostics import PrunecError
from prunec.ir.text import print_graph


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def traced(function: Any, *shape: int, dynamic: bool = True) -> Traced:
    x = torch.zeros(shape)
    return trace(Lambda(function), {"x": x}, dynamic={"x": {0: "n"}} if dynamic else None)


def body(function: Any, *shape: int) -> list[str]:
    """The operations of the traced function, as text."""
    lines = print_graph(traced(function, *shape).graph).splitlines()
    return [line.strip().split(" loc(")[0] for line in lines if line.strip().startswith("%")]


CANONICAL = {
    "copies vanish": (
        lambda x: x.detach().clone().contiguous().to("cpu").float().view(x.shape) * 1.0 + x,
        ["%add = aten.add.Tensor(%x, %x) : f32[n, 4] pointwise"],
    ),
    "dropout of evaluation vanishes": (
        lambda x: nnf.dropout(x, 0.5, training=False).neg(),
        ["%neg = aten.neg.default(%x) : f32[n, 4] pointwise"],
    ),
    "whole slices vanish": (
        lambda x: x[:, 0:4, None][:, :, 0].neg(),
        [
            "%unsqueeze = aten.unsqueeze.default(%x, 2) : f32[n, 4, 1]",
            "%select = aten.select.int(%unsqueeze, 2, 0) : f32[n, 4]",
            "%neg = aten.neg.default(%select) : f32[n, 4] pointwise",
        ],
    ),
    "dimensions count from 0, slices have five arguments": (
        lambda x: x[..., -3:].softmax(-1),
        [
            "%slice_1 = aten.slice.Tensor(%x, 1, 1, none, 1) : f32[n, 3]",
            "%softmax = aten.softmax.int(%slice_1, 1) : f32[n, 3]",
        ],
    ),
    "default dimensions are stated": (
        lambda x: x.topk(2)[0],
        ["%topk__0, %topk__1 = aten.topk.default(%x, 2, 1) : f32[n, 2], i64[n, 2]"],
    ),
    "a squeeze names what it drops": (
        lambda x: x[:, None].squeeze().squeeze(0)[..., None].squeeze(-1),
        [
            "%unsqueeze = aten.unsqueeze.default(%x, 1) : f32[n, 1, 4]",
            "%squeeze = aten.squeeze.dims(%unsqueeze, [1]) : f32[n, 4]",
            "%unsqueeze_1 = aten.unsqueeze.default(%squeeze, 2) : f32[n, 4, 1]",
            "%squeeze_2 = aten.squeeze.dim(%unsqueeze_1, 2) : f32[n, 4]",
        ],
    ),
    "one spelling of a transposition": (
        lambda x: x.T.mT,
        [
            "%numpy_t = aten.transpose.int(%x, 0, 1) : f32[4, n]",
            "%m_t = aten.transpose.int(%numpy_t, 0, 1) : f32[n, 4]",
        ],
    ),
    "in-place operations become values": (
        lambda x: x.mul(2).add_(1).relu_(),
        [
            "%mul = aten.mul.Tensor(%x, 2) : f32[n, 4] pointwise",
            "%add_ = aten.add.Tensor(%mul, 1) : f32[n, 4] pointwise",
            "%relu_ = aten.relu.default(%add_) : f32[n, 4] pointwise",
        ],
    ),
    "factories state their dtype and no device": (
        lambda x: torch.arange(x.shape[0], device=x.device),
        [
            "%sym_size_int_1 = aten.sym_size.int(%x, 0) : index",
            "%arange = aten.arange.default(%sym_size_int_1, dtype=dtype<int64>) : i64[n]",
        ],
    ),
    "several results are one operation": (
        lambda x: x.chunk(2, -1)[1],
        ["%chunk__0, %chunk__1 = aten.chunk.default(%x, 2, 1) : f32[n, 2], f32[n, 2]"],
    ),
    "sizes are computed by py operations": (
        lambda x: x.expand(x.shape[0] * 2 // 2, 4).reshape(x.shape[0] * 4),
        [
            "%sym_size_int_1 = aten.sym_size.int(%x, 0) : index",
            "%mul_1 = py.mul(%sym_size_int_1, 4) : index",
            "%reshape = aten.reshape.default(%x, [%mul_1]) : f32[4*n]",
        ],
    ),
}


@pytest.mark.parametrize("rule", CANONICAL)
def test_canonical_form(rule: str) -> None:
    function, expected = CANONICAL[rule]
    assert body(function, 2, 4) == expected


def test_attention_scale_is_explicit() -> None:
    (op,) = traced(lambda x: nnf.scaled_dot_product_attention(x, x, x), 2, 3, 16).graph.ops
    assert op.kwarg("scale") == 0.25


def test_in_place_on_shared_memory_is_left_to_torch() -> None:
    def write_through_a_view(x: Tensor) -> Tensor:
        y = x * 2
        y[:, :2].add_(1)
        y[:, 3] = 5
        return y

    found = traced(write_through_a_view, 2, 4)
    x = torch.randn(3, 4)
    constants = {name: torch.tensor(value) for name, value in found.constants.items()}
    assert torch.equal(to_fx(found.graph, constants)(x), write_through_a_view(x))


def test_writing_at_indices_is_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is not traced anew for it, which takes as long as the export."""
    monkeypatch.setattr("torch.export.ExportedProgram.run_decompositions", None)

    def chosen(x: Tensor) -> Tensor:
        mask = torch.zeros_like(x)
        mask.scatter_(1, x.topk(2)[1], 1.5)
        return x * mask

    found = traced(chosen, 2, 4)
    assert "aten.scatter.value" in [op.name for op in found.graph.ops]
    x = torch.randn(3, 4)
    assert torch.equal(to_fx(found.graph)(x), chosen(x))


def test_constants_keep_their_values_on_meta() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * torch.tensor([1.5, 2.5], device=x.device)

    with torch.device("meta"):
        module = Scaled()
    found = trace(module, {"x": torch.zeros(1, 2)})
    ((name, value),) = found.constants.items()
    assert found.graph.parameters[name].kind == "constant"
    np.testing.assert_array_equal(value, [1.5, 2.5])
    assert module.linear.weight.is_meta, "the module is left as it was"


def test_constant_without_a_value_is_told() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.arange(4.0)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.table

    with torch.device("meta"):
        module = Holder()
    with pytest.raises(PrunecError, match=r"P133.*table"):
        trace(module, {"x": torch.zeros(1, 4)})


class Doubled(torch.autograd.Function):
    """A function with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 2


def test_own_derivatives_and_casts_to_the_same_dtype_are_traced() -> None:
    linear = nn.Linear(4, 4)

    class Caster(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear

        def forward(self, x: Tensor) -> Tensor:
            return Doubled.apply(self.inner.to(torch.float32)(x))

    graph = trace(Caster(), {"x": torch.zeros(2, 4)}).graph
    assert [op.name for op in graph.ops] == ["aten.linear.default", "aten.mul.Tensor"]


def test_heads_of_two_layers_do_not_share_a_size() -> None:
    """torch.export computes `n * 2` once; each reshape gets its own."""

    def twice(x: Tensor) -> Tensor:
        y = x.view(x.shape[0] * 2, 2).exp().view(x.shape[0], 4)
        return y.view(x.shape[0] * 2, 2).exp().view(x.shape[0], 4)

    ops = traced(twice, 3, 4).graph.ops
    sizes = [op.args[1][0].name for op in ops if op.name == "aten.reshape.default"]
    made = {op.result for op in ops if op.name == "py.mul"}
    assert len(made & set(sizes)) == 2


def test_numbers_in_the_code_are_constants() -> None:
    def slopes(x: Tensor) -> Tensor:
        return x * torch.pow(0.5, torch.arange(1, 5)) + x[:, torch.tensor([2, 3, 0, 1])]

    found = traced(slopes, 2, 4)
    assert sorted(np.asarray(v).tolist() for v in found.constants.values()) == [
        [0.5, 0.25, 0.125, 0.0625],
        [2, 3, 0, 1],
    ]
    last = traced(lambda x: x[:, torch.tensor([-2, -1])].neg(), 2, 4).graph.ops
    assert [op.name for op in last] == ["aten.slice.Tensor", "aten.neg.default"]


def test_a_mask_that_is_branched_on_is_left_out() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 4)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            y = self.embed(input_ids)
            if attention_mask is not None and not attention_mask.any():
                y = -y
            return y

    ids = torch.zeros(1, 2, dtype=torch.int64)
    names = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = trace_hf(Branching(), example=names, dynamic={"attention_mask": {0: "batch"}})
    assert [value.name for value in found.graph.inputs] == ["%input_ids"]
    assert [warning.code for warning in found.warnings] == ["P142"]


class Asking(nn.Module):
    """Asks whether any value is true; only one of the two ways may be possible while tracing."""

    def __init__(self, possible: bool) -> None:
        super().__init__()
        self.possible = possible

    def forward(self, x: Tensor) -> Tensor:
        negative = x < 0
        some = bool(negative.any())
        if some == self.possible:
            return x.exp()
        raise ValueError


@pytest.mark.parametrize("possible", [True, False])
def test_a_branch_on_whether_any_value_is_true(possible: bool) -> None:
    found = trace_hf(Asking(possible), example={"x": torch.zeros(3, 4)}, dynamic={"x": {0: "n"}})
    assert [op.name for op in found.graph.ops] == ["aten.exp.default"]
    (warning,) = found.warnings
    assert warning.code == "P143"
    assert ("some entries but not all" in warning.message) is possible


class HitExperts(nn.Module):
    """A loop over those experts that some token chose, in the ways that models write it."""

    def __init__(self) -> None:
        super().__init__()
        self.config = None
        self.router = nn.Linear(4, 3, bias=False)
        self.up = nn.Parameter(torch.randn(3, 6, 4))
        self.down = nn.ModuleDict({f"expert_{i}": nn.Linear(6, 4) for i in range(3)})

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).topk(2)
        mask = nnf.one_hot(chosen, num_classes=4).permute(2, 1, 0)  # one class more
        result = torch.zeros_like(x)
        for expert in mask.sum((-1, -2)).greater(0).nonzero():
            number = expert[0]
            if number == 3:
                continue
            place, row = torch.where(mask[number])
            if row.numel() == 0:
                continue
            y = nnf.linear(x[row], self.up[number])
            y = self.down[f"expert_{number}"](y) * weight[row, place, None]
            result.index_add_(0, row, y)
        return result


def test_a_loop_over_the_experts_that_were_hit() -> None:
    module = HitExperts().eval()
    found = trace_hf(module, example={"x": torch.zeros(5, 4)}, dynamic={"x": {0: "n"}})
    assert found.warnings == ()
    weights = {name: tensor.detach() for name, tensor in module.named_parameters()}
    for n in (2, 7):  # with two tokens some expert is not hit
        x = torch.randn(n, 4)
        with torch.no_grad():
            (y,) = execute(found.graph, {**weights, **found.constants}, [{"x": x}])
            torch.testing.assert_close(torch.as_tensor(next(iter(y.values()))), module(x))


class Tied(nn.Module):
    """Embedding and head share a weight, and a buffer stands on its own."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.spare = nn.Linear(2, 2, bias=False)
        self.register_buffer("scale", torch.ones(4), persistent=False)
        self.register_buffer("unused", torch.ones(3), persistent=False)

    def forward(self, ids: Tensor) -> dict[str, Any]:
        hidden = self.embed(ids) * self.scale
        return {"logits": self.head(hidden), "hidden": (hidden, None, hidden.sum())}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_names_ties_and_outputs(device: str) -> None:
    with torch.device(device):
        module = Tied()
    ids = torch.zeros(1, 2, dtype=torch.int64)
    graph = trace(module, {"ids": ids}, dynamic={"ids": {0: "batch", 1: "time"}}).graph
    stored = {p.name: (p.kind, p.aliases) for p in graph.parameters.values()}
    assert stored == {
        "embed.weight": ("parameter", ("head.weight",)),
        "spare.weight": ("parameter", ()),
        "scale": ("buffer", ()),
    }
    assert [name for name, _ in graph.outputs] == ["logits", "hidden_0", "hidden_2"]
    assert graph.types[graph.outputs[0][1]].shape == ("batch", "time", 7)
    head = next(op for op in graph.ops if op.name == "aten.linear.default")
    assert head.loc.module == "head"
    assert head.loc.source.startswith("test_torch_frontend.py:")


def test_example_sizes_are_primes_that_divide_nothing() -> None:
    module = nn.Sequential(nn.Linear(5 * 7, 11 * 4), nn.Linear(11 * 4, 26))
    found = trace(module, {"input": torch.zeros(2, 3, 35)}, dynamic={"input": {0: "a", 1: "b"}})
    assert dict(found.graph.symbols) == {"a": 17, "b": 19}


def test_example_sizes_avoid_what_the_trace_brings_up() -> None:
    found = traced(lambda x: x.repeat(1, 5), 2, 4)  # 20 is no size of the module
    assert dict(found.graph.symbols) == {"n": 7}


def test_fixed_dimension_is_told() -> None:
    found = traced(lambda x: [x[i] for i in range(x.shape[0])], 5)
    (warning,) = found.warnings
    assert warning.code == "P131"
    assert "dimension 0 of input x (n)" in warning.message


def test_blocks_as_many_as_the_example_has_are_told() -> None:
    """The loop goes round once for each block; how often is fixed by the trace."""

    def blocks(x: Tensor) -> Tensor:
        parts = [x[4 * i : 4 * i + 4].cumsum(0) for i in range((x.shape[0] + 3) // 4)]
        return torch.cat(parts) if x.shape[0] >= 4 else x.cumsum(0)

    (warning,) = traced(blocks, 9, 2).warnings
    assert warning.code == "P131"
    assert "dimension 0 of input x (n)" in warning.message


def test_a_number_of_rounds_that_no_bound_shows_is_told() -> None:
    """Padded to whole blocks, any size will do as long as they are as many as in the example."""

    def blocks(x: Tensor) -> Tensor:
        padded = nnf.pad(x, (0, 0, 0, (4 - x.shape[0] % 4) % 4))
        parts = padded.reshape(-1, 4, x.shape[1])
        return torch.cat([parts[i].cumsum(0) for i in range(padded.shape[0] // 4)])

    found = traced(blocks, 9, 2)
    assert found.graph.inputs[0].type.shape == (9, 2)
    (warning,) = found.warnings
    assert warning.message == "the model fixes dimension 0 of input x (n) to 9, as in the example"


def test_sizes_that_data_decide_add_up_to_what_they_are_parts_of() -> None:
    """Parts of six rows, put together again, are six rows."""

    def lengths(x: Tensor) -> Tensor:
        first, second = (x > 0).sum(0).tolist()[:2]
        parts = x.split([first, second])
        return torch.cat([part * 2 for part in parts]).reshape(6, -1)

    graph = trace(Lambda(lengths), {"x": torch.zeros(6, 4)}).graph
    assert graph.types[graph.outputs[0][1]].shape == (6, 4)


def test_transforms_are_written_out() -> None:
    body_of = torch.vmap(lambda row: row.exp() * row)
    names = [op.name for op in traced(body_of, 3, 4).graph.ops]
    assert names == ["aten.exp.default", "aten.mul.Tensor"]


def test_an_output_that_is_an_input_has_a_name_of_its_own() -> None:
    found = traced(lambda x: {"x": x.neg(), "y": x.exp()}, 2, 4).graph
    assert [name for name, _ in found.outputs] == ["x_out", "y"]


def test_caches_are_no_outputs() -> None:
    @dataclass
    class Output(ModelOutput):
        logits: Tensor | None = None
        past: DynamicCache | None = None

    class Caching(nn.Linear):
        config = (4, 3)  # a layer may call something else so

        def forward(self, x: Tensor) -> Output:
            return Output(logits=super().forward(x), past=DynamicCache())

    found = trace_hf(Caching(4, 3), example={"x": torch.zeros(2, 4)})
    assert [name for name, _ in found.graph.outputs] == ["logits"]


def test_fixed_dimension_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size stands in the graph, which no other example size would change."""
    runs = []
    export = torch.export.export

    def counted(*args: Any, **kwargs: Any) -> Any:
        runs.append(args)
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.export, "export", counted)
    assert traced(lambda x: [x[i] for i in range(x.shape[0])], 5).warnings
    assert len(runs) == 1


def test_dimensions_of_one_name_are_one_symbol() -> None:
    graph = zoo.model("llama").traced.graph
    assert {value.type.shape for value in graph.inputs} == {("batch", "sequence")}
    assert set(graph.symbols) == {"batch", "sequence"}


def test_untraceable_module_is_told() -> None:
    with pytest.raises(PrunecError) as caught:
        traced(lambda x: x if x.sum() > 0 else -x, 2, 4)
    (found,) = caught.value.diagnostics
    assert found.code == "P130"
    assert "test_torch_frontend.py" in found.where


def test_unknown_input_is_told() -> None:
    with pytest.raises(PrunecError, match=r"P134.*no input called y"):
        trace(nn.ReLU(), {"y": torch.zeros(2)})


def test_configuration_is_left_as_it_was() -> None:
    model = zoo.build("t5", meta=True)
    assert model.config.use_cache is True
    trace_hf(model)
    assert model.config.use_cache is True
    assert model.decoder.config.use_cache is True


def test_experts_are_left_as_they_were() -> None:
    model = zoo.build("mixtral", meta=True)
    before = model.get_experts_implementation()
    trace_hf(model)
    assert model.get_experts_implementation() == before


def test_experts_of_a_model_inside_are_batched_too() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = zoo.build("mixtral", meta=True)
            self.config, self.main_input_name = self.inner.config, "input_ids"

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return self.inner(input_ids, attention_mask).logits

    outer = Outer()
    names = {op.name for op in trace_hf(outer).graph.ops}
    assert not [name for name in names if "grouped_mm" in name]
    assert "aten.bmm.default" in names


@pytest.mark.parametrize(
    ("family", "outputs"),
    [("bert", ["last_hidden_state", "pooler_output"]), ("t5", ["logits"]), ("llama", ["logits"])],
)
def test_inner_states_are_no_outputs(family: str, outputs: list[str]) -> None:
    """The first output always stays; a state from which another output is computed goes."""
    assert [name for name, _ in zoo.model(family).traced.graph.outputs] == outputs


def test_extra_inputs() -> None:
    found = trace_hf(zoo.build("bert", meta=True), extra_inputs=("token_type_ids",))
    names = [value.name for value in found.graph.inputs]
    assert names == ["%input_ids", "%attention_mask", "%token_type_ids"]


def test_example_inputs_follow_the_signature() -> None:
    examples, dynamic = example_inputs(zoo.build("t5", meta=True))
    assert list(examples) == ["input_ids", "attention_mask", "decoder_input_ids"]
    assert dynamic["decoder_input_ids"] == {0: "batch", 1: "decoder_sequence"}
    examples, dynamic = example_inputs(zoo.build("vit", meta=True))
    assert examples["pixel_values"].shape == (2, 3, 32, 32)
    assert dynamic == {"pixel_values": {0: "batch"}}
