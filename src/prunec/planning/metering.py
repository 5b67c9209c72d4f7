"""What a model costs under a workload, for any counts that a plan leaves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from prunec.ir.graph import Parameter
from prunec.options.target import Target
from prunec.options.workload import STORED, Workload
from prunec.passes.cost import Polynomial, itemsize
from prunec.runs.loading import Loaded

__all__ = ["Meter", "per_index"]


@dataclass(frozen=True)
class Meter:
    """Costs by name; see `__call__`."""

    loaded: Loaded
    workload: Workload = field(default_factory=Workload)

    def __call__(self, metric: str, counts: Mapping[str, int]) -> int:
        """`params`, `blocks`, `flops` (two a multiply-add), `weights`, `cache` or `memory`, which
        is the two together; the last three in bytes."""
        polynomial = self._polynomials[metric]
        return self.loaded.cost.evaluate(polynomial, {**self.sizes, **counts})

    def measure(self, target: Target, counts: Mapping[str, int]) -> float:
        """What a target counts; for targets in time, the seconds that the model's clock tells."""
        if not target.timed:
            return self(target.metric, counts)
        assert self.loaded.clock is not None, "a run with a target in time has a clock"
        return self.loaded.clock.seconds(self.loaded, counts)

    @property
    def sizes(self) -> dict[str, int]:
        """The symbolic sizes of the program under the workload."""
        symbols = dict.fromkeys(self.loaded.graph.symbols, self.workload.length)
        return symbols | {"batch": self.workload.batch} if "batch" in symbols else symbols

    @cached_property
    def _polynomials(self) -> dict[str, Polynomial]:
        cost = self.loaded.cost
        weights, cache = self._weights, self._cache
        return {
            "params": cost.parameters,
            "blocks": cost.blocks,
            "flops": cost.flops,
            "weights": weights,
            "cache": cache,
            "memory": Polynomial.sum([weights, cache]),
        }

    @cached_property
    def _weights(self) -> Polynomial:
        """Bytes of everything that the program holds: computed buffers and constants too."""
        return Polynomial.sum(
            Polynomial.product(
                [Polynomial.constant(self._width(p)), *map(Polynomial.of, p.type.axes)]
            )
            for p in self.loaded.graph.parameters.values()
        )

    @cached_property
    def _cache(self) -> Polynomial:
        """Bytes of keys and values; only a model that writes token by token keeps them."""
        if not getattr(self.loaded.model, "can_generate", lambda: False)():
            return Polynomial.constant(0)
        positions = self.workload.batch * self.workload.length
        width = self._common if self.workload.dtype == STORED else itemsize(self.workload.dtype)
        return Polynomial.product([Polynomial.constant(positions * width), self.loaded.cost.cache])

    def _width(self, parameter: Parameter) -> int:
        """Bytes of one element; whole numbers and masks keep their own dtype."""
        stored, own = self.loaded.stored.get(parameter.name), parameter.type.dtype
        if parameter.kind != "parameter" or "f" not in own:
            return itemsize(own)
        if self.workload.dtype != STORED:
            return itemsize(self.workload.dtype)
        return itemsize(own) if stored is None else int(stored.dtype.itemsize)

    @cached_property
    def _common(self) -> int:
        """Bytes of an element of most parameters."""
        widths = Counter(
            self._width(p) for p in self.loaded.graph.parameters.values() if p.kind == "parameter"
        )
        return widths.most_common(1)[0][0] if widths else 0


def per_index(loaded: Loaded) -> dict[str, int]:
    """What one index of each group costs in parameters: the derivative of the polynomial."""
    sizes = loaded.cost.sizes
    found: dict[str, int] = {}
    for key, factor in loaded.cost.parameters.terms.items():
        value = factor * math.prod(sizes[name] for name in key)
        for name in set(key):
            found[name] = found.get(name, 0) + key.count(name) * value // sizes[name]
    return found
