"""Blocks that compute the same are exported once and repeated.

Exporting costs a quarter of a second a transformer block, running the module on fake tensors a
few milliseconds. So the module runs once on fake tensors, and what each block of a `ModuleList`
does is recorded operation by operation: name, arguments, and where every tensor comes from. The
longest run of blocks at the end of a list that do the same, each to the result of the one before,
is cut down to its first two; the cut module is exported, and `torch_expand` repeats the second
block's part of the graph for those that were left out.

Nothing is assumed: where recordings differ the whole module is exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from prunec.frontends.torch_fake import fake_inputs, faked
from prunec.frontends.torch_import import first_names

__all__ = ["KEPT", "Run", "find_runs", "rebased", "shortened"]

KEPT = 2
"""Blocks of a run that are exported, to be compared in the exported graph too."""
WORTH = 3
"""Blocks that must be saved for the recording to pay."""


@dataclass(frozen=True)
class Run:
    """Blocks `first` to `stop` (exclusive) of the list at `path`, which compute the same."""

    path: str
    first: int
    stop: int

    @property
    def kept(self) -> int:
        """Length of the list once it is cut."""
        return self.first + KEPT

    def block(self, module_path: str) -> int | None:
        """Which block of the list a path lies in."""
        rest = module_path.removeprefix(self.path + ".")
        head = rest.split(".", 1)[0]
        return int(head) if rest != module_path and head.isdigit() else None


def find_runs(module: nn.Module, example: Mapping[str, Any]) -> list[Run]:
    """The runs worth cutting; none when the module does not run on fake tensors."""
    lists = dict(_lists(module))
    if not lists:
        return []
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with faked(module, mode), torch.no_grad(), ExitStack() as hooks:
        recorder = _Recorder(first_names(module))
        for path, owner in lists.items():
            for i, child in enumerate(owner.children()):
                hooks.enter_context(recorder.watching(path, i, child))
        try:
            with mode, recorder:
                outputs = module(**fake_inputs(example, mode))
        except Exception:  # whatever the reason, the exporter will meet it and say so
            return []
        recorder.leaves(outputs)
    found = [recorder.run(path, len(owner)) for path, owner in lists.items()]
    return [run for run in found if run is not None and run.stop - run.kept >= WORTH]


def _lists(module: nn.Module) -> Iterator[tuple[str, nn.ModuleList | nn.Sequential]]:
    """Outermost lists that end in enough modules of one class."""
    taken: list[str] = []
    for path, owner in module.named_modules():
        if not isinstance(owner, nn.ModuleList | nn.Sequential) or not path:
            continue
        classes = [type(child) for child in owner.children()]
        alike = len(classes) > KEPT + WORTH and len(set(classes[-KEPT - WORTH :])) == 1
        if alike and not any(path.startswith(outer + ".") for outer in taken):
            taken.append(path)
            yield path, owner


Origin = tuple[str, int, int]
"""List, block and running number of what made a tensor."""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what each watched block does."""

    def __init__(self, stored: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stored = stored
        self.segments: dict[tuple[str, int], list[tuple[Any, ...]]] = {}
        self.broken: set[str] = set()  # lists whose blocks do not simply follow one another
        self.current: tuple[str, int] | None = None
        self.made: dict[int, Origin] = {}
        self.alive: list[Any] = []  # so that no identity is given twice
        self.last: dict[str, int] = {}
        self.count = 0  # tensors made in this block
        self.outside = 0  # tensors made outside of all blocks
        self.left: dict[str, int] = {}  # how many those were when the last block ended

    @contextmanager
    def watching(self, path: str, block: int, child: nn.Module) -> Iterator[None]:
        def enter(*_: Any) -> None:
            follows = self.last.get(path, -1) == block - 1
            between = self.outside - self.left.get(path, self.outside)
            if self.current is not None or not follows or between:
                self.broken.add(path)
            self.current, self.count = (path, block), 0
            self.segments.setdefault(self.current, [])
            self.last[path] = block

        def leave(*_: Any) -> None:
            self.current = None
            self.left[path] = self.outside

        handles = [child.register_forward_pre_hook(enter), child.register_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        given, _ = pytree.tree_flatten((args, kwargs))
        tokens = tuple(self._token(value) for value in given)
        result = func(*args, **kwargs)
        for value in pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor) and id(value) not in self.made:
                self.alive.append(value)
                self.made[id(value)] = self._origin()
        if self.current is None:
            self._between(tokens)
        else:
            self._foreign(tokens)
            self.segments[self.current].append((str(func), *tokens))
        return result

    def _origin(self) -> Origin:
        if self.current is None:
            self.outside += 1
            return ("", 0, self.outside)
        self.count += 1
        return (*self.current, self.count)

    def _token(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return (type(value).__name__, repr(value))
        origin = self.made.get(id(value))
        if origin is not None:
            return origin
        self.alive.append(value)
        name = self.stored.get(id(value), f"#{id(value)}")
        return ("@", name, tuple(value.shape), str(value.dtype))

    def _between(self, tokens: Sequence[Any]) -> None:
        """An operation outside of all blocks: fine before a list begins or after it has ended."""
        for path, last in self.last.items():
            self._reads(path, last, tokens)

    def _foreign(self, tokens: Sequence[Any]) -> None:
        assert self.current is not None
        for path, last in self.last.items():
            if path != self.current[0]:
                self._reads(path, last, tokens)

    def _reads(self, path: str, last: int, tokens: Sequence[Any]) -> None:
        """Blocks before the last that has run so far give nothing to the world outside."""
        if any(t[0] == path and t[1] != last for t in tokens if len(t) == 3):
            self.broken.add(path)

    def leaves(self, outputs: Any) -> None:
        """Results of the whole module count as read outside."""
        tokens = [self._token(v) for v in pytree.tree_leaves(outputs) if torch.is_tensor(v)]
        self._between(tokens)

    def run(self, path: str, length: int) -> Run | None:
        if path in self.broken or self.last.get(path) != length - 1:
            return None
        first = length - 1
        while first > 0 and self._same(path, first - 1):
            first -= 1
        return Run(path, first, length)

    def _same(self, path: str, block: int) -> bool:
        """Whether a block and the next do the same, each to what comes from the one before."""
        one, two = self.segments[path, block], self.segments[path, block + 1]
        if len(one) != len(two):
            return False
        return all(
            len(a) == len(b)
            and a[0] == b[0]
            and all(_matches(path, block, x, y) for x, y in zip(a[1:], b[1:], strict=True))
            for a, b in zip(one, two, strict=True)
        )


def _matches(path: str, block: int, one: Any, two: Any) -> bool:
    """Whether arguments of a block and of the next say the same."""
    if one == two and not (len(one) == 3 and one[0] == path and one[1] == block):
        return True
    if len(one) == len(two) == 3 and one[0] == two[0] == path:
        steps = (block - one[1], block + 1 - two[1])
        return steps in ((0, 0), (1, 1)) and bool(one[2] == two[2])
    if len(one) == len(two) == 4 and one[0] == two[0] == "@":
        moved = rebased(one[1], path, block, block + 1)
        return bool(moved == two[1] != one[1] and one[2:] == two[2:])
    return False


def rebased(name: str, path: str, block: int, other: int) -> str:
    """A name within one block of a list, as it is called in another."""
    prefix = f"{path}.{block}."
    return f"{path}.{other}.{name.removeprefix(prefix)}" if name.startswith(prefix) else name


@contextmanager
def shortened(module: nn.Module, runs: Sequence[Run]) -> Iterator[None]:
    """Within the block every list of a run ends after the blocks that are kept."""
    owners = [(module.get_submodule(run.path), run.kept) for run in runs]
    saved = [dict(owner._modules) for owner, _ in owners]
    try:
        for owner, kept in owners:
            for name in list(owner._modules)[kept:]:
                del owner._modules[name]
        yield
    finally:
        for (owner, _), children in zip(owners, saved, strict=True):
            owner._modules.clear()
            owner._modules.update(children)
