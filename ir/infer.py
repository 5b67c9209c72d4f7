"""Infer the axes of every value: one pass over the program, one rule an operation.

Rules state equalities on a shared `Axes` store, so information flows in both directions and one
pass suffices. An operation without a rule pins what it touches. Rules also say which literals
follow from the types (sizes in a view, bounds of a slice), so that a rewrite can re-derive them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prunec.ir.axes import Axis
from prunec.ir.graph import Arg, Dim, Graph, Op, Ref, TensorType
from prunec.ir.match import Match
from prunec.ir.runtime import RuntimeSizes
from prunec.ir.signature import parse_signature
from prunec.ir.sizes import dim_size
from prunec.ir.unify import Axes, AxisId

__all__ = ["Caches", "Contraction", "Dialect", "Rule", "Typing", "infer"]

Dims = list[AxisId]
Labelled = tuple[AxisId, tuple[tuple[int, int], ...]]
"""An axis with the (operand, dimension) places where its label stands."""
Path = tuple[int | str, ...]
"""Where in an operation a literal stands: argument position or keyword, then list positions."""


@dataclass(frozen=True, slots=True)
class Contraction:
    """Where an axis is summed over, kept for roles, consumers and costs.

    `operands` are the values; `contracted`, `batch` and `free` hold, for each label, its axis and
    the (operand, dimension) places where it stands. All labels together span the FLOPs.
    """

    op: int
    operands: tuple[str, ...]
    contracted: tuple[Labelled, ...]
    batch: tuple[Labelled, ...]
    free: tuple[Labelled, ...]


Caches = bool | Sequence[tuple[str, str]]
"""Whether inputs and outputs that hold what came before may change, or which pairs of them do."""


@dataclass
class Typing:
    """The result of inference, and the interface that rules use."""

    graph: Graph
    dialect: Dialect
    caches: Caches = False
    axes: Axes = field(default_factory=Axes)
    dims: dict[str, Dims] = field(default_factory=dict)
    literals: dict[tuple[int, Path], tuple[AxisId, ...]] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)
    normed: dict[int, list[AxisId]] = field(default_factory=dict)
    without_rule: dict[str, int] = field(default_factory=dict)
    sizes: RuntimeSizes = field(default_factory=RuntimeSizes)
    inner: dict[str, str] = field(default_factory=dict)
    grown: list[tuple[str, str]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    positions: dict[str, AxisId] = field(default_factory=dict)
    choices: list[tuple[AxisId, int]] = field(default_factory=list)
    shares: list[tuple[AxisId, str, object]] = field(default_factory=list)
    _index: int = 0
    _understood: set[str] = field(default_factory=set)
    _symbols: dict[str, AxisId] = field(default_factory=dict)
    _sizes: dict[tuple[Dim, ...], list[int]] = field(default_factory=dict)

    # -- values -------------------------------------------------------------------------

    def of(self, arg: Arg) -> Dims:
        """The axes of an operand; those of a literal, a number or a row of them, stay."""
        if isinstance(arg, Ref):
            self.seen.add(arg.name)
            return self.dims[arg.name]
        if isinstance(arg, tuple):
            return self.fresh([len(arg)], "numbers that the program itself holds")
        assert isinstance(arg, int | float), arg
        return []

    def fresh(self, shape: Sequence[Dim], reason: str = "") -> Dims:
        """New axes for a shape; run-time sizes are pinned, and so is all with a `reason`."""
        axes = self.axes
        sizes = self.shape(tuple(shape))
        found = [axes.atom(size) for size in sizes]
        if tuple(sizes) == shape and not reason:  # as of nearly all parameters
            return found
        for dim, axis in zip(shape, found, strict=True):
            if isinstance(dim, str):
                axes.mark(axis, "runtime", "")
                axes.pin(axis, "its size is known at run time only")
            if reason:
                axes.pin(axis, reason)
        return found

    def shape(self, shape: tuple[Dim, ...]) -> list[int]:
        """The sizes of dimensions, symbolic ones at the symbols' example values."""
        found = self._sizes.get(shape)
        if found is None:
            found = self._sizes[shape] = [dim_size(d, self.graph.symbols) for d in shape]
        return found

    def unify(self, a: Sequence[AxisId], b: Sequence[AxisId]) -> Dims:
        """Unify two lists of dimensions, aligned from the right with broadcasting."""
        if len(a) < len(b):
            a, b = b, a
        result = list(a)
        if a == b:
            return result
        for i in range(1, len(b) + 1):
            x, y = a[-i], b[-i]
            if x == y:
                continue
            if self.axes.size(x) == 1:
                result[-i] = y
            else:
                self.axes.unify(x, y)
        return result

    def pin(self, dims: Sequence[AxisId], reason: str) -> None:
        for axis in dims:
            self.axes.pin(axis, reason)

    def norm(self, axis: AxisId) -> None:
        """A statistic is taken over the axis: masking must mask the statistic too."""
        self.axes.mark(axis, "norm", "a statistic is taken over it")
        self.counted(axis)

    def counted(self, axis: AxisId) -> None:
        """How many indices there are matters to the operation: zeros are no substitute for
        indices that are gone, so masking must leave them out."""
        self.normed.setdefault(self._index, []).append(axis)

    def literal(self, path: Path, *axes: AxisId) -> None:
        """The literal at `path` of the current operation is the sum of the axes' sizes.

        That of a `frozen` operation cannot change: other programs share it.
        """
        if self.graph.ops[self._index].kwarg("frozen"):
            self.pin(axes, "its size stands in a function, which others may call")
            return
        self.literals[self._index, path] = axes

    def size_argument(self, path: Path, arg: Arg, axis: AxisId) -> None:
        """An argument says the size of `axis`: a literal follows it, and so does the literal
        inside a product computed at run time, such as `batch * 6`."""
        if isinstance(arg, int):
            if arg > 1:
                self.literal(path, axis)
            return
        if isinstance(arg, Ref):
            self.understood(arg.name)
            self.sizes.argument(self, arg, axis)

    def new_dimension(self, path: Path, arg: Arg, axis: AxisId) -> AxisId:
        """The axis of a dimension that an argument makes, at first a fresh one: a product where its
        size is one. The argument follows it."""
        made = self.sizes.made(self, arg) if isinstance(arg, Ref) else None
        axis = axis if made is None else made
        self.size_argument(path, arg, axis)
        return axis

    def understood(self, name: str) -> None:
        """The current operation's use of a size is one that its rule accounts for."""
        self._understood.add(name)

    @property
    def index(self) -> int:
        """The position of the current operation."""
        return self._index

    def define(self, name: str, dims: Dims, source: Arg = None) -> Ref:
        """Axes of a value inside of the current operation, such as the queries of a layer that
        projects and attends at once, or those of a weight that it unpacks from `source`."""
        inner = f"{self.graph.ops[self._index].result}.{name}"
        self.dims[inner] = dims
        if isinstance(source, Ref):
            self.inner[inner] = source.name
        return Ref(inner)

    # -- choices ------------------------------------------------------------------------

    def choose(self, axis: AxisId, count: int, value: str) -> None:
        """The operation chooses `count` indices of an axis; the entries of `value` are their
        positions, which mean the same wherever they select from that axis."""
        self.axes.mark(axis, "chosen", f"`{self.graph.ops[self._index].name}` chooses from it")
        self.counted(axis)
        self.choices.append((axis, count))
        self.positions[value] = axis

    def select(self, arg: Arg, axis: AxisId) -> None:
        """The current operation selects indices of `axis` by the entries of `arg`."""
        if isinstance(arg, Ref) and arg.name in self.positions:
            self.understood(arg.name)
            self.axes.unify(axis, self.positions[arg.name])
            return
        self.axes.mark(axis, "index", "data select from it")

    def shared_out(self, axis: AxisId, reason: str) -> None:
        """The indices of an axis share out a whole (softmax). Where the program then chooses among
        them, the whole is shared by those that stay; any other such axis is pinned."""
        self.counted(axis)
        self.shares.append((axis, reason, self.axes.where))

    def _follow_positions(self, op: Op) -> None:
        """Positions stay what they are where only their layout changes; what else is done with
        them depends on which indices there are."""
        for name in dict.fromkeys(op.operands):
            if name not in self.positions or name in self._understood:
                continue
            if op.name.rsplit(".", 1)[0] in self.dialect.layouts:
                self.positions |= dict.fromkeys(op.results, self.positions[name])
                continue
            self.axes.pin(self.positions[name], f"`{op.name}` works with positions along it")

    def _settle_choices(self) -> None:
        for name, result in self.graph.outputs:
            if result in self.positions:
                self.axes.pin(
                    self.positions[result], f"graph output `{name}` tells positions in it"
                )
        for axis, reason, where in self.shares:
            marks = [self.axes.marks(leaf) for leaf in self.axes.leaves(axis)]
            if not all(any(m.kind == "chosen" for m in found) for found in marks):
                self.axes.where = where
                self.axes.pin(axis, reason)

    # -- signatures ---------------------------------------------------------------------

    def apply(
        self,
        text: str,
        operands: Sequence[Arg],
        sizes: Mapping[str, int] | None = None,
        literals: Mapping[str, Path] | None = None,
    ) -> list[Dims] | None:
        """Type the current operation by a signature; None when an operand has another rank.

        `sizes` gives labels inside products that cannot be told from the operands;
        `literals` names labels whose size stands in an argument.
        """
        signature = parse_signature(text)
        match = Match(self, signature, dict(sizes or {}))
        used = [
            (arg.name, self.of(arg), pattern)
            for arg, pattern in zip(operands, signature.operands, strict=False)
            if isinstance(arg, Ref)
        ]
        for _, dims, pattern in used:
            if not match.fits(dims, pattern):
                return None
        for position, (_, dims, pattern) in enumerate(used):
            match.operand(position, dims, pattern)
        for kind, label, reason in signature.facts:
            axis = match.labels.get(label)
            if axis is not None:
                self.fact(kind, axis, reason)
        for label, path in (literals or {}).items():
            if label in match.labels:
                self.literal(path, match.labels[label])
        self._record(match, tuple(name for name, _, _ in used))
        op = self.graph.ops[self._index]
        return [
            match.result(pattern, type_)
            for pattern, type_ in zip(signature.results, op.types, strict=False)
        ]

    def fact(self, kind: str, axis: AxisId, reason: str) -> None:
        if kind == "norm":
            self.norm(axis)
        elif kind == "index":
            self.axes.mark(axis, "index", reason or "data select from it")
        else:
            self.axes.mark(axis, kind, reason)

    def _record(self, match: Match, operands: tuple[str, ...]) -> None:
        results = match.signature.made
        contracted: list[Labelled] = []
        batch: list[Labelled] = []
        free: list[Labelled] = []
        for label, axis in match.labels.items():
            places = match.places[label]
            several = len(places) > 1 and places[0][0] != places[-1][0]  # in order of operands
            if label in results:
                (batch if several else free).append((axis, tuple(places)))
            elif several:
                contracted.append((axis, tuple(places)))
        if contracted:
            batch += [(axis, places) for axis, places in match.shared]
            self.contractions.append(
                Contraction(self._index, operands, tuple(contracted), tuple(batch), tuple(free))
            )

    # -- the pass -----------------------------------------------------------------------

    def run(self) -> Typing:
        graph = self.graph
        for value in graph.inputs:
            self.dims[value.name] = self._shared(value.type.shape)
            if not self.caches:
                self.pin(self.dims[value.name], "graph input")
        for parameter in graph.parameters.values():
            self.dims[parameter.ref] = self.fresh(parameter.type.shape)
        for self._index, op in enumerate(graph.ops):
            self.axes.where = op
            self._step(op)
        self._interface()
        self._settle_choices()
        return self

    def _interface(self) -> None:
        """Inputs and outputs stay as they are, unless caches may change."""
        self.grown = self._grown() if self.caches is True else list(self.caches or ())
        free = {name for pair in self.grown for name in pair}
        for value in self.graph.inputs if self.caches else ():
            self.axes.where = "input"
            if value.name not in free:
                self.pin(self.dims[value.name], "graph input")
        self.axes.where = "output"
        for name, result in self.graph.outputs:
            if result in self.dims and result not in free:
                self.pin(self.dims[result], f"graph output `{name}`")

    def _grown(self) -> list[tuple[str, str]]:
        """Inputs that hold what came before, each with the outputs that it grows to: one of its
        dimensions is added to (`past + sequence`), all static ones are the same axes."""
        return [
            (value.name, result)
            for value in self.graph.inputs
            for _, result in self.graph.outputs
            if result in self.dims and self._grows(value.name, result)
        ]

    def _grows(self, before: str, after: str) -> bool:
        types = self.graph.types
        one, other = types[before].shape, types[after].shape
        if len(one) != len(other):
            return False
        pairs = list(zip(one, other, self.dims[before], self.dims[after], strict=True))
        more = [b for a, b, _, _ in pairs if a != b and a in str(b).split(" + ")]
        axes = [(x, y) for a, b, x, y in pairs if isinstance(a, int) and isinstance(b, int)]
        same = [self.axes.find(x) == self.axes.find(y) for x, y in axes]
        return bool(more) and bool(same) and all(same)

    def _shared(self, shape: Sequence[Dim]) -> Dims:
        """Axes of an input; one symbol is one axis."""
        dims = self.fresh(shape)
        for i, dim in enumerate(shape):
            if isinstance(dim, str):
                dims[i] = self._symbols.setdefault(dim, dims[i])
        return dims

    def _step(self, op: Op) -> None:
        if op.types[0].dtype == "index":
            self.sizes.step(self, self._index, op)
            return
        self._understood.clear()
        rule = self.dialect.find(op)
        if rule is None:
            self.without_rule[op.name] = self.without_rule.get(op.name, 0) + 1
            self._give_up(op, f"`{op.name}` has no rule")
            return
        results = rule(self, op)
        if results is None or len(results) != len(op.results):
            self._give_up(op, f"`{op.name}` is used in a form that its rule does not cover")
            return
        if self.sizes.factors:
            for name in op.operands:
                if name in self.sizes.factors and name not in self._understood:
                    self.sizes.opaque(self, name)
        for name, type_, dims in zip(op.results, op.types, results, strict=True):
            self.dims[name] = self._checked(op, type_, dims)
        if self.positions:
            self._follow_positions(op)

    def _checked(self, op: Op, type_: TensorType, dims: Dims) -> Dims:
        """A rule's answer must have the shape that the tracer saw."""
        sizes = self.shape(type_.shape)
        if self.axes.sizes(dims) == sizes:
            return dims
        shown = " ".join(self.axes.show(d) for d in dims)
        reason = f"`{op.name}` gives {sizes}, its rule [{shown}]"
        self._give_up(op, reason)
        return self.fresh(type_.shape, reason)

    def _give_up(self, op: Op, reason: str) -> None:
        for name in op.operands:
            self.sizes.opaque(self, name)
            if name in self.dims:
                self.pin(self.dims[name], reason)
            if name in self.positions:
                self.axes.pin(self.positions[name], reason)
        for name, type_ in zip(op.results, op.types, strict=True):
            self.dims[name] = self.fresh(type_.shape, reason)

    # -- reading ------------------------------------------------------------------------

    def term(self, axis: AxisId, names: dict[AxisId, str] | None = None) -> Axis:
        return self.axes.resolve(axis, names or {})


Rule = Callable[[Typing, Op], list[Dims] | None]
"""Given the typing so far and an operation: the axes of each result, or None to give up."""


@dataclass(frozen=True)
class Dialect:
    """The rules of one op vocabulary: signatures by name, functions by name, and the default
    for operations marked as pointwise. `layouts` are those that leave every entry as it is."""

    signatures: Mapping[str, str]
    rules: Mapping[str, Rule]
    pointwise: Rule
    layouts: frozenset[str] = frozenset()
    _found: dict[tuple[str, bool], Rule | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def find(self, op: Op) -> Rule | None:
        """The rule of an operation; None when there is none. What was found is remembered."""
        key = op.name, op.pointwise
        if key not in self._found:
            self._found[key] = self._rule(op)
        return self._found[key]

    def _rule(self, op: Op) -> Rule | None:
        base = op.name.rsplit(".", 1)[0]
        for name in (op.name, base):
            if name in self.rules:
                return self.rules[name]
            if name in self.signatures:
                text = self.signatures[name]
                return lambda t, op: t.apply(text, op.args)
        return self.pointwise if op.pointwise else None


def infer(graph: Graph, dialect: Dialect, *, caches: Caches = False) -> Typing:
    """Type a graph. Never fails: what cannot be typed is pinned with its reason.

    With `caches`, inputs and outputs that hold what came before are not pinned as such: the pairs
    given, or those that are found.
    """
    return Typing(graph, dialect, caches).run()
