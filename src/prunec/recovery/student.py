"""What of a model is trained: adapters beside its linear layers, all of it, or its last layers.

Layers are found by what they are, never by name: a linear layer multiplies its input by a matrix,
and is left alone where that matrix is the output head or shared with an embedding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prunec.ir.diagnostics import Exit, PrunecError, fail
from prunec.recovery.options import Scope

__all__ = ["Pace", "Student", "Update", "blocks", "check_rank", "linear_layers", "student"]

SCALE = 2
"""Adapters are added times this."""


@dataclass(frozen=True)
class Update:
    """What training made of a parameter: its new value, or what is to be added to the old one."""

    value: Tensor
    added: bool = False


@dataclass(frozen=True)
class Pace:
    """Parameters that learn at a rate of their own, and make the loss large where they `climb`."""

    parameters: tuple[nn.Parameter, ...]
    lr: float
    climbs: bool = False


@dataclass(frozen=True)
class Student:
    """`module` is what runs and learns, `base` the model in it, `paces` tell of parameters that do
    not learn at the rate of the others."""

    module: nn.Module
    base: nn.Module
    scope: Scope
    paces: tuple[Pace, ...] = ()

    def state(self) -> dict[str, Tensor]:
        """All that training changes, by name in `module`: what it learns and what it counts."""
        learned = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        saved = self.module.state_dict(keep_vars=True)
        counted = {n: b for n, b in self.module.named_buffers() if n in saved}
        return {name: tensor.detach() for name, tensor in (learned | counted).items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what `state` gave."""
        own = self.state()
        assert own.keys() == state.keys(), "the checkpoint is of this very model"
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def updates(self) -> dict[str, Update]:
        """What training changed, by the names that parameters had before."""
        if not self.scope.adapters:
            return {name: Update(value) for name, value in self.state().items()}
        return {
            f"{path}.weight": Update(layer.get_delta_weight("default").detach(), added=True)
            for path, layer in self._adapters()
        }

    def apply(self) -> dict[str, Update]:
        """Put the updates into the parameters of `base`, which has no adapters from then on."""
        found = self.updates()
        if self.scope.adapters:
            module: Any = self.module
            module.unload()
        for name, update in found.items():
            if update.added:
                self.base.get_parameter(name).data += update.value
        return found

    def _adapters(self) -> Iterator[tuple[str, Any]]:
        for path, layer in self.base.named_modules():
            if isinstance(layer, LoraLayer):
                yield path, layer


def student(model: nn.Module, scope: Scope, rank: int, seed: int) -> Student:
    """Make `model` ready to be trained, in place.

    Raises P871 for a rank above the width of a layer, for a model without linear layers, and for
    more last layers than there are.
    """
    if scope.adapters:
        return _adapted(model, scope, rank, seed)
    trained = set(model.parameters())
    if scope.kind == "last":
        trained = {p for block in _last(model, scope.layers) for p in block.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad = parameter in trained and parameter.is_floating_point()
    return Student(model, model, scope)


def linear_layers(model: nn.Module) -> dict[str, Any]:
    """The linear layers between the embeddings and the output head, by path."""
    shared = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        shared.add(id(head.weight))
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in shared
    }


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers that a model stacks: of its lists of modules the one with most parameters."""
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    return max(lists, key=_numel, default=[])


def _numel(modules: Sequence[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def _adapted(model: nn.Module, scope: Scope, rank: int, seed: int) -> Student:
    check_rank(model, rank)
    layers = linear_layers(model)
    if scope.kind == "qlora":
        prepare: Any = prepare_model_for_kbit_training
        model = prepare(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(
            model,
            LoraConfig(
                r=rank,
                lora_alpha=SCALE * rank,
                target_modules="|".join(map(re.escape, layers)),
            ),
        )
    return Student(adapted, model, scope)


def check_rank(model: nn.Module, rank: int) -> None:
    """P871 for a rank above the width of a layer, and for a model without linear layers."""
    layers = linear_layers(model)
    if not layers:
        raise _refused(
            "the model has no linear layers to put adapters beside", "--train", "use --train full"
        )
    narrow = {path: min(_sizes(layer)) for path, layer in layers.items()}
    path, width = min(narrow.items(), key=lambda item: item[1])
    if rank <= width:
        return
    raise _refused(
        f"rank {rank} is above the width of a layer: {path} has {width}",
        "--rank",
        f"give {width} or less, or --train full",
    )


def _sizes(layer: Any) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):  # quantized weights are packed: only this tells
        return layer.in_features, layer.out_features
    rows, columns = layer.weight.shape
    return rows, columns


def _last(model: nn.Module, count: int) -> Iterator[nn.Module]:
    found = blocks(model)
    if count > len(found):
        has = f"{len(found)} layers" if found else "no list of layers"
        raise _refused(f"the model has {has}, not {count}", "--train", "use --train full")
    yield from found[len(found) - count :]


def _refused(fact: str, where: str, remedy: str) -> PrunecError:
    return fail("P871", fact, where=where, help=remedy, exit_code=Exit.USAGE)
