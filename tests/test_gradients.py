"""Slopes of the loss and the criteria made of them, against autograd on the module itself.

References take the gradients of each sequence from the traced module and compute the papers'
formulas on its weights in NumPy, in the one layout at hand.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from handmade import Builder
from layers import DIM, KV, SHARED, one
from programs import Block, Network, Program, block, program

from prunec.backends import torch_backward
from prunec.backends.torch_gradients import TorchGradients
from prunec.ir.diagnostics import PrunecError
from prunec.ir.dialects.aten import ATEN
from prunec.passes.couple import couple
from prunec.passes.coupling import Coupling, Group, Place
from prunec.passes.criteria import CRITERIA, HeadImportance, Taylor
from prunec.passes.criteria.gradient import gradient_places
from prunec.passes.profile import Slopes

TOLERANCE = 2e-4
"""Relative, float32 on both sides, through another program of the same operations."""

BATCH, TIME = 4, 6

MLP = block("Mlp", hidden=10, width=14, out=10, activation="silu", gate="branch", bias=True)


def attention(causal: bool) -> Block:
    sizes = {"hidden": 10, "kv": KV, "group": SHARED, "dim": DIM, "out": 10}
    return block(
        "Attention", **sizes, layout="separate", kernel="sdpa", rotary=False, normed=False,
        causal=causal, bias=False,
    )  # fmt: skip


def net(causal: bool, head: str) -> Network:
    return Network(
        hidden=10,
        blocks=(block("Residual", block=attention(causal)), block("Residual", block=MLP)),
        out=10,
        vocabulary=23,
        head=head,
        classes=11 if head == "linear" else 0,
    )


NETWORKS = {
    "next token": net(causal=True, head="tied"),
    "not causal": net(causal=False, head="tied"),
    "no tokens": net(causal=True, head="linear"),
}


def loss(name: str, tokens: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Of one sequence."""
    if name != "next token":
        return (output**2).mean() / 2
    return torch.nn.functional.cross_entropy(output[0, :-1], tokens[0, 1:])


@cache
def reference(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weights, and gradients (sequences, *shape), by the name of the parameter."""
    module, tokens = program(NETWORKS[name]).module, batch(name)["x"]
    parameters = dict(module.named_parameters())
    rows: dict[str, list[np.ndarray]] = {key: [] for key in parameters}
    for sequence in tokens:
        output = module(sequence[None])
        of = torch.autograd.grad(loss(name, sequence[None], output), list(parameters.values()))
        for key, gradient in zip(parameters, of, strict=True):
            rows[key].append(gradient.double().numpy())
    weights = {key: p.detach().double().numpy() for key, p in parameters.items()}
    return weights, {key: np.stack(found) for key, found in rows.items()}


def batch(name: str) -> dict[str, torch.Tensor]:
    return program(NETWORKS[name]).inputs(batch=BATCH, time=TIME, seed=2)


def cut_small(patch: pytest.MonkeyPatch) -> None:
    """A stretch for every weight, and everything between them on disk."""
    patch.setattr(torch_backward, "STRETCH", 1)
    patch.setattr(torch_backward, "BUDGET", 0)


def test_stretches_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    coupling, weights, whole = measured("next token")
    wanted = {place: s for place, s in whole.items() if place.parameter.startswith("blocks.")}
    assert len(wanted) < len(whole), "the tied table is read at both ends: a stretch of its own"
    inputs = {key: value.numpy() for key, value in batch("next token").items()}
    cut_small(monkeypatch)
    names = {place.parameter for place in wanted}
    passes = torch_backward.Backward(coupling.graph, weights, [inputs], parameters=names)
    assert sum(len(list(stretch.backward())) for stretch in passes) > 4 * BATCH
    found = TorchGradients(coupling.graph, weights, [inputs]).slopes(wanted)
    for place, slopes in wanted.items():
        for field in ("sums", "first", "second", "mixed"):
            a, b = getattr(found[place], field), getattr(slopes, field)
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())


@cache
def measured(name: str) -> tuple[Coupling, dict[str, np.ndarray], dict[Place, Slopes]]:
    """Slopes at all places of all groups, from two batches of unlike sizes."""
    built: Program = program(NETWORKS[name])
    coupling = couple(built.graph, ATEN)
    weights = {key: np.asarray(value) for key, value in built.parameters.items()}
    whole = batch(name)
    batches = [{k: v[:1].numpy() for k, v in whole.items()}, {k: v[1:] for k, v in whole.items()}]
    places = {p: None for group in coupling.groups for p in gradient_places(coupling, group)}
    return coupling, weights, TorchGradients(built.graph, weights, batches).slopes(places)


def folded(values: np.ndarray, dim: int) -> np.ndarray:
    return values.sum(tuple(d for d in range(values.ndim) if d != dim))


@pytest.mark.parametrize("name", NETWORKS)
def test_slopes_are_those_of_the_module(name: str) -> None:
    _, _, found = measured(name)
    weights, gradients = reference(name)
    assert len({place.parameter for place in found}) >= 9
    for place, slopes in found.items():
        w, g = weights[place.parameter], gradients[place.parameter]
        first, second = w * g.mean(0), w**2 * (g**2).mean(0) / 2
        wanted = {
            "sums": np.stack([folded(w * one_, place.dim) for one_ in g]),
            "first": folded(np.abs(first), place.dim),
            "second": folded(second, place.dim),
            "mixed": folded(np.abs(first - second), place.dim),
        }
        for field, value in wanted.items():
            scale = np.abs(value).max()
            np.testing.assert_allclose(
                getattr(slopes, field), value, rtol=TOLERANCE, atol=TOLERANCE * scale,
                err_msg=f"{place} {field}",
            )  # fmt: skip


# -- groups in the layout at hand: parameter -> where its units are --------------------------------


def units(group: str) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]]]:
    """Shape of the scores, and for each parameter (program order) the shape it is seen in, where
    the sizes of the scores come first, and all else is summed."""
    match group:
        case "neuron":
            inside = "blocks.1.block"
            return (14,), {
                f"{inside}.up.weight": (14,), f"{inside}.up.bias": (14,),
                f"{inside}.gate.weight": (14,), f"{inside}.gate.bias": (14,),
                f"{inside}.down.weight": (14,),
            }  # fmt: skip
        case "kv_head":
            names = [f"blocks.0.block.{part}.weight" for part in "qkvo"]
            return (KV,), dict.fromkeys(names, (KV,))
        case _:
            names = [f"blocks.0.block.{part}.weight" for part in "qo"]
            return (KV, SHARED), dict.fromkeys(names, (KV, SHARED))


def seen(values: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Entries of a parameter with the units in front: (*shape, rest)."""
    rows = values.T if name.endswith(("down.weight", ".o.weight")) else values
    return rows.reshape(*shape, -1)


def group_of(coupling: Coupling, role: str) -> Group:
    layer = "blocks.1.block.down.weight" if role == "neuron" else "blocks.0.block.o.weight"
    return one(coupling, layer, role)


def parts(role: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """w and g of each parameter with the units in front: (*shape, rest), (S, *shape, rest)."""
    weights, gradients = reference("next token")
    shape, names = units(role)
    return [
        (
            seen(weights[name], name, shape),
            np.stack([seen(g, name, shape) for g in gradients[name]]),
        )
        for name in names
    ]


def unit(role: str) -> np.ndarray:
    """Molchanov et al.: mean over sequences of the square of the whole sum."""
    per_sequence = sum((w * g).sum(-1) for w, g in parts(role))
    found: np.ndarray = (np.asarray(per_sequence) ** 2).mean(0)
    return found


def vector(role: str) -> list[np.ndarray]:
    return [np.abs((w * g.mean(0)).sum(-1)) for w, g in parts(role)]


def element(role: str) -> list[np.ndarray]:
    return [np.abs(w * g.mean(0)).sum(-1) for w, g in parts(role)]


def second(role: str) -> list[np.ndarray]:
    return [(w**2 * (g**2).mean(0) / 2).sum(-1) for w, g in parts(role)]


def mixed(role: str) -> list[np.ndarray]:
    return [np.abs(w * g.mean(0) - w**2 * (g**2).mean(0) / 2).sum(-1) for w, g in parts(role)]


ROLES = ("neuron", "kv_head", "query_head")


def check(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE * wanted.max())
    np.testing.assert_array_equal(np.argsort(found, axis=None), np.argsort(wanted, axis=None))


@pytest.mark.parametrize("role", ROLES)
def test_molchanov(role: str) -> None:
    coupling, weights, slopes = measured("next token")
    found = Taylor().with_slopes(slopes).score(coupling, group_of(coupling, role), weights, ())
    check(found, unit(role))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("form", [vector, element, second, mixed])
@pytest.mark.parametrize("reduction", ["sum", "prod", "max", "last"])
def test_llm_pruner(form: object, reduction: str, role: str) -> None:
    coupling, weights, slopes = measured("next token")
    assert callable(form)
    importance = form(role)
    wanted = {
        "sum": lambda: np.sum(importance, axis=0),
        "prod": lambda: np.prod(importance, axis=0),
        "max": lambda: np.max(importance, axis=0),
        "last": lambda: importance[-1],
    }[reduction]()
    made = Taylor(form.__name__, reduction).with_slopes(slopes)  # type: ignore[attr-defined,arg-type]
    check(made.score(coupling, group_of(coupling, role), weights, ()), wanted)


@pytest.mark.parametrize("role", ROLES)
def test_head_importance_is_the_slope_of_a_mask(role: str) -> None:
    """Michel et al.: E |dL/dxi| with the mask xi in the program, before the layer that reads."""
    coupling, weights, slopes = measured("next token")
    module, tokens = program(NETWORKS["next token"]).module, batch("next token")["x"]
    shape, _ = units(role)
    layer = "blocks.1.block.down" if role == "neuron" else "blocks.0.block.o"
    consumer = module.get_submodule(layer)
    width = consumer.in_features
    assert isinstance(width, int)
    total = np.zeros(shape)
    for sequence in tokens:
        mask = torch.ones(shape, requires_grad=True)
        spread = mask.reshape(-1, 1).expand(-1, width // mask.numel()).reshape(-1)
        handle = consumer.register_forward_pre_hook(lambda _, args, m=spread: (args[0] * m,))
        found = loss("next token", sequence[None], module(sequence[None]))
        handle.remove()
        (slope,) = torch.autograd.grad(found, [mask])
        total += slope.abs().double().numpy()
    wanted = total / np.linalg.norm(total)
    made = HeadImportance().with_slopes(slopes)
    check(made.score(coupling, group_of(coupling, role), weights, ()), wanted)


def test_the_table_has_every_form() -> None:
    coupling, weights, slopes = measured("next token")
    group = group_of(coupling, "kv_head")
    wanted = {
        "taylor": unit("kv_head"),
        "taylor-vector": np.sum(vector("kv_head"), axis=0),
        "taylor-element": np.sum(element("kv_head"), axis=0),
        "taylor-second": np.sum(second("kv_head"), axis=0),
        "taylor-mixed": np.sum(mixed("kv_head"), axis=0),
    }
    for name, value in wanted.items():
        made = CRITERIA[name]()
        assert isinstance(made, Taylor)
        check(made.with_slopes(slopes).score(coupling, group, weights, ()), value)


def test_damaged_weights_are_named() -> None:
    built = program(NETWORKS["next token"])
    name = "blocks.1.block.down.weight"
    weights = {key: np.asarray(value) for key, value in built.parameters.items()}
    weights[name] = np.full_like(weights[name], np.nan)
    inputs = {key: value.numpy() for key, value in batch("next token").items()}
    with pytest.raises(PrunecError, match="P312"):
        TorchGradients(built.graph, weights, [inputs]).slopes([Place(name, 0)])


def test_tokens_may_be_looked_up_through_a_view() -> None:
    """As GPT-2 does it; the loss is that of the next token all the same."""
    b = Builder()
    tokens = b.tokens(23)
    flat = b.call("aten.view.default", tokens, (-1, b.size(tokens, 1)))
    y = b.call("aten.embedding.default", b.weight(23, 10), flat)
    built = b.finish(b.linear(b.call("aten.relu.default", b.linear(y, 14)), 23))
    inputs = {name: value[:3] for name, value in built.example.items()}
    table, up, bias, down, last = (torch.tensor(w) for w in built.weights.values())
    up.requires_grad_(True)
    wanted = []
    for row in inputs["x0"]:
        hidden = torch.relu(table[row] @ up.T + bias)
        logits = hidden @ down.T + last
        found = torch.nn.functional.cross_entropy(logits[:-1], row[1:])
        (slope,) = torch.autograd.grad(found, [up])
        wanted.append((slope * up).sum(1).detach().double().numpy())
    place = Place(list(built.weights)[1], 0)
    slopes = TorchGradients(built.graph, built.weights, [inputs]).slopes([place])[place]
    np.testing.assert_allclose(slopes.sums, wanted, rtol=TOLERANCE, atol=1e-6)


def test_a_model_without_a_smooth_output_is_told() -> None:
    b = Builder()
    built = b.finish(b.call("aten.argmax.default", b.linear(b.input("batch", 6), 5), 1))
    inputs = {name: value[:3] for name, value in built.example.items()}
    with pytest.raises(PrunecError, match="P313"):
        TorchGradients(built.graph, built.weights, [inputs]).slopes([Place("w1", 0)])
