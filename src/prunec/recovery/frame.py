"""A model whose blocks come into memory one at a time, the state between them kept outside.

Blocks are the layers that the model stacks. What lies outside (embeddings, masks, head) is computed
by the model's own code: a block that is not in memory lets the state pass, so that every block
is called as in the whole model, and its own state is put in place of what has passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunec.backends.hf_emit import first_names
from prunec.frontends.checkpoint import open_parameters
from prunec.frontends.hf import real_buffers
from prunec.frontends.tensors import to_torch
from prunec.ir.diagnostics import Exit, PrunecError, fail
from prunec.recovery.models import Opened
from prunec.recovery.rows import ROW
from prunec.recovery.student import blocks
from prunec.recovery.teacher import Batch

__all__ = ["STATE", "WANTED", "Call", "Frame"]

STATE, WANTED = "prunec_state", "prunec_wanted"
"""In a batch: what a block reads, and what it is to give. Not inputs of the model."""


@dataclass(frozen=True)
class Call:
    """How a model calls one of its blocks: with the state first, or by a name."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def state(self) -> Tensor:
        found = self.args[0] if self.args else next(iter(self.kwargs.values()))
        assert isinstance(found, Tensor), "blocks read a tensor first"
        return found

    def run(self, block: Any, state: Tensor) -> Tensor:
        """What `block` makes of another state."""
        found = _state_of(block(*self._args(state), **self._kwargs(state)))
        assert found is not None, "the model was surveyed"
        return found

    def beside(self) -> list[Any]:
        """All it is called with but the state."""
        rest: list[Any] = tree_leaves((self._args(None), self._kwargs(None)))
        return rest

    def _args(self, state: Tensor | None) -> tuple[Any, ...]:
        return (state, *self.args[1:]) if self.args else ()

    def _kwargs(self, state: Tensor | None) -> dict[str, Any]:
        if self.args or not self.kwargs:
            return dict(self.kwargs)
        return dict(self.kwargs) | {next(iter(self.kwargs)): state}


class _Reached(Exception):
    """A block is about to be called."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


class Frame:
    """`opened` is on the meta device, and goes through `survey` before anything else.

    Raises P871 when the model has no list of layers, each with parameters of its own.
    """

    def __init__(self, opened: Opened, device: torch.device) -> None:
        self.opened, self.model, self.device = opened, opened.model, device
        self.stored = open_parameters(self.model, opened.source)
        trust = opened.source.trust_remote_code
        self.buffers = real_buffers(opened.config, trust_remote_code=trust)
        self.blocks = blocks(self.model)
        paths = {id(module): path for path, module in self.model.named_modules()}
        self.paths = [paths[id(block)] for block in self.blocks]
        self.first = first_names(self.model) | {name: name for name in self._unsaved()}
        self.empty = {name: self._slot(name)[0][self._slot(name)[1]] for name in self.first}
        self.inside = [self._names_in(path) for path in self.paths]
        within = {name for names in self.inside for name in names}
        self.outside = [name for name in self.first if name not in within]
        self._check(within)
        self.lengths: list[int | None] = []
        self.stop: int | None = None
        self.last: Tensor | None = None
        for number, block in enumerate(self.blocks):
            block.register_forward_pre_hook(self._before(number), with_kwargs=True)

    def __len__(self) -> int:
        return len(self.blocks)

    # -- what is in memory ------------------------------------------------------------------

    @contextmanager
    def resident(self, block: int | None = None) -> Iterator[None]:
        """Within the block of code, what lies outside is in memory, and one block of the model."""
        names = [*self.outside, *([] if block is None else self.inside[block])]
        self._fill(names)
        if block is not None:
            standing_in = self.blocks[block].__dict__.pop("forward", None)
        try:
            yield
        finally:
            self._empty(names)
            if block is not None and standing_in is not None:
                self.blocks[block].forward = standing_in

    def reload(self, block: int) -> None:
        """Values from the files for a block that is in memory."""
        self._fill(self.inside[block])

    def _fill(self, names: list[str]) -> None:
        """Values from the files, one tensor for names that share one."""
        made: dict[str, Any] = {}
        for name in names:
            first = self.first[name]
            if first not in made:
                stored = self.stored[name] if name in self.stored else self.buffers[name]
                value = to_torch(stored)
                value = value.float() if value.is_floating_point() else value
                made[first] = value.to(self.device)
            slots, leaf = self._slot(name)
            value = made[first]
            if isinstance(self.empty[name], nn.Parameter):
                value = nn.Parameter(value, requires_grad=False)
            slots[leaf] = made[first] = value

    def _empty(self, names: list[str]) -> None:
        for name in names:
            slots, leaf = self._slot(name)
            slots[leaf] = self.empty[name]

    def _slot(self, name: str) -> tuple[dict[str, Any], str]:
        """Where the module that has a tensor keeps it."""
        path, _, leaf = name.rpartition(".")
        owner = self.model.get_submodule(path)
        return (owner._parameters if leaf in owner._parameters else owner._buffers), leaf

    def _unsaved(self) -> Iterator[str]:
        saved = self.model.state_dict().keys()
        yield from (n for n, _ in self.model.named_buffers() if n not in saved)

    def _names_in(self, path: str) -> list[str]:
        return [name for name in self.first if name.startswith(f"{path}.")]

    def _check(self, within: set[str]) -> None:
        if not self.blocks:
            raise _refused("P871", "the model has no list of layers")
        firsts = [{self.first[name] for name in names} for names in self.inside]
        shared = sum(map(len, firsts)) != len(set().union(*firsts))
        outside = {self.first[name] for name in self.outside}
        if shared or outside & {self.first[name] for name in within}:
            raise _refused("P871", "layers of the model share parameters with another part of it")

    # -- running ----------------------------------------------------------------------------

    @torch.no_grad()
    def survey(self, batch: Batch) -> Tensor:
        """Run the whole model once, with one block in memory, to see how it calls its blocks;
        returns the state behind the last one.

        Raises P872 when blocks depend on more of each other than the state between them.
        """
        calls: list[Call] = []
        said: list[Any] = []

        def load(number: int) -> Any:
            def before(module: Any, args: Any, kwargs: Any) -> None:
                self._fill(self.inside[number])
                calls.append(Call(args, kwargs))

            return before

        def let_go(number: int) -> Any:
            def after(module: Any, args: Any, output: Any) -> None:
                self._empty(self.inside[number])
                said.append(output)

            return after

        hooks = [b.register_forward_pre_hook(load(i), with_kwargs=True)
                 for i, b in enumerate(self.blocks)]  # fmt: skip
        hooks += [b.register_forward_hook(let_go(i)) for i, b in enumerate(self.blocks)]
        try:
            with self.resident():
                self._run(batch)
        finally:
            for hook in hooks:
                hook.remove()
        self._learn(batch, calls, said)
        found = _state_of(said[-1])
        assert found is not None, "it was looked at"
        return found

    def _learn(self, batch: Batch, calls: list[Call], said: list[Any]) -> None:
        rows = len(next(iter(batch.values())))
        for number, path in enumerate(self.paths):
            called = len(calls) == len(self.paths) and _reads_state(calls[number], rows)
            if not called or _state_of(said[number]) is None:
                raise _refused("P872", f"{path} does not make one tensor of one tensor", path)
        self.lengths = [None if isinstance(s, Tensor) else len(s) for s in said]
        for number, block in enumerate(self.blocks):
            block.forward = self._stand_in(number)
        with self.resident():
            again = [self.reach(number, batch) for number in range(len(self))]
        for path, one, other in zip(self.paths, calls, again, strict=True):
            if not _alike(one.beside(), other.beside()):
                raise _refused("P872", f"{path} reads more of other layers than the state", path)

    @torch.no_grad()
    def reach(self, number: int, batch: Batch) -> Call:
        """How the model calls a block on this batch; what lies outside must be in memory."""
        self.stop = number
        try:
            self._run(batch)
        except _Reached as reached:
            return reached.call
        finally:
            self.stop = None
        raise AssertionError("the model calls all of its blocks")

    @torch.no_grad()
    def finish(self, **inputs: Tensor) -> Any:
        """What the model says where `STATE` among the inputs is what its last block gave."""
        self.last = inputs[STATE]
        try:
            return self._run(inputs)
        finally:
            self.last = None

    def _run(self, batch: Batch) -> Any:
        ours = (ROW, STATE, WANTED)
        return self.model(**{name: x for name, x in batch.items() if name not in ours})

    def _before(self, number: int) -> Any:
        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.stop == number:
                raise _Reached(Call(args, kwargs))

        return before

    def _stand_in(self, number: int) -> Any:
        """Lets the state pass, or puts the last one in place, in the form that the block has."""
        final, length = number == len(self) - 1, self.lengths[number]

        def forward(*args: Any, **kwargs: Any) -> Any:
            state = self.last if final and self.last is not None else Call(args, kwargs).state
            return state if length is None else (state, *[None] * (length - 1))

        return forward


def _state_of(said: Any) -> Tensor | None:
    """The one tensor in what a block gives."""
    found = [leaf for leaf in tree_leaves(said) if isinstance(leaf, Tensor)]
    first = said[0] if isinstance(said, tuple | list) and said else said
    return first if len(found) == 1 and isinstance(first, Tensor) else None


def _reads_state(call: Call, rows: int) -> bool:
    first = (*call.args, *call.kwargs.values())[:1]
    return bool(first) and isinstance(first[0], Tensor) and first[0].shape[:1] == (rows,)


def _alike(ours: list[Any], theirs: list[Any]) -> bool:
    """Tensors by their values; other things tell nothing of other blocks."""
    pairs = list(zip(ours, theirs, strict=False))
    tensors = [(a, b) for a, b in pairs if isinstance(a, Tensor) or isinstance(b, Tensor)]
    return len(ours) == len(theirs) and all(
        isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b) for a, b in tensors
    )


def _refused(code: str, fact: str, where: str = "--blockwise") -> PrunecError:
    return fail(
        code,
        f"{fact}, so that it cannot be trained block by block",
        where=where,
        help="leave out --blockwise: the whole model is then in memory",
        exit_code=Exit.USAGE,
    )
