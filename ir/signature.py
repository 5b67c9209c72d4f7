"""Signatures: which dimensions of an operation are the same axis, in einops notation.

    linear      "... i, o i, o -> ... o"
    embedding   "v d, ... -> ... d | index v"
    grouped     "b (g i) y x, (g o) i p q, (g o) -> b (g o) _ _"

A label names an axis; labels that meet in two operands and not in the result are contracted.
`...` stands for any number of dimensions that broadcast, `_` for a dimension of its own, `(a b)`
for a row-major product. Behind `|` stand facts on labels: `norm n` (a statistic is taken over
it), `index v` (data select from it), `pin p: reason`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache

__all__ = ["ELLIPSIS", "Dimension", "Pattern", "Signature", "parse_signature"]

ELLIPSIS = "..."
Dimension = str | tuple[str, ...]
Pattern = tuple[Dimension, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """A parsed signature; `facts` are (kind, label, reason)."""

    operands: tuple[Pattern, ...]
    results: tuple[Pattern, ...]
    facts: tuple[tuple[str, str, str], ...] = ()
    made: frozenset[str] = field(init=False, default=frozenset())
    """All labels of the results."""

    def __post_init__(self) -> None:
        made = frozenset(label for result in self.results for label in self.labels(result))
        object.__setattr__(self, "made", made)

    def labels(self, pattern: Pattern) -> list[str]:
        """The labels of a pattern, products opened, in order."""
        return [
            label
            for dim in pattern
            for label in ((dim,) if isinstance(dim, str) else dim)
            if label not in (ELLIPSIS, "_")
        ]


_TOKEN = re.compile(r"\(([^()]*)\)|(\.\.\.)|([A-Za-z_]\w*)")


def _pattern(text: str) -> Pattern:
    found: list[Dimension] = []
    for product, dots, label in _TOKEN.findall(text):
        found.append(tuple(product.split()) if product else dots or label)
    return tuple(found)


def _fact(text: str) -> tuple[str, str, str]:
    kind, _, rest = text.strip().partition(" ")
    label, _, reason = rest.partition(":")
    return kind, label.strip(), reason.strip()


@cache
def parse_signature(text: str) -> Signature:
    """Parse `operands -> results | facts`."""
    head, *facts = text.split("|")
    left, arrow, right = head.partition("->")
    assert arrow, f"a signature needs '->': {text!r}"
    return Signature(
        tuple(_pattern(part) for part in left.split(",")),
        tuple(_pattern(part) for part in right.split(",")),
        tuple(_fact(fact) for fact in facts),
    )
