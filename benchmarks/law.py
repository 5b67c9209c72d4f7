"""Law 1, prune = mask, on the real models: one role at a time, then all of them together.

For every role that can be pruned in a model (neuron, query_head, kv_head, head_dim, hidden) about
a third of the indices of each of its groups is removed at random, the parameters are sliced, and
the smaller program is run beside the dense one with the same indices zeroed wherever they occur.
Nothing is refitted (`--restore none`); everything is float32. Where query heads share a KV head,
a different choice is made under each.

`difference` is the largest absolute difference of any output, over the largest absolute value of
that output, at two batch sizes and two lengths; it is promised to be at most 1e-5. Values are
float32 and contractions sum in float64; `difference_float32_sums` is the same with sums in float32,
whose order slicing changes, and it can exceed 1e-5. `rounding` tells how much of that is the law's
and how much the arithmetic's: it compares the smaller program with itself, sums in float32 against
sums in float64. `moved` compares the dense with the pruned model: something was removed.
A role that a model lacks is listed with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common import Document, Figure, figures, main, model, parser, say

if TYPE_CHECKING:
    import numpy as np

    from prunec.ir.axes import Selection
    from prunec.passes.coupling import Group
    from prunec.runs.loading import Loaded

ROLES = ("neuron", "query_head", "kv_head", "head_dim", "hidden")
MODELS = ("smollm2", "gemma3", "minilm")
SHAPES = ((2, 17), (3, 29))
ALLOWED = 1e-5
TOGETHER = "all together"

Outputs = Sequence[Mapping[str, Any]]


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    options.add_argument(
        "--models", nargs="+", default=MODELS, metavar="MODEL", help="names or model folders"
    )
    options.add_argument("--share", type=float, default=1 / 3, help="removed of each group [1/3]")
    options.add_argument("--seeds", type=int, default=1, metavar="N", help="draws of each [1]")
    asked = options.parse_args(arguments)
    rows = [row for name in asked.models for row in _model(name, asked.share, asked.seeds)]
    measured = [row for row in rows if "difference" in row]
    worst = max((row["difference"] for row in measured), default=None)
    what = f"largest relative difference in {len(measured)} runs"
    return {
        "rows": rows,
        "largest_with_float32_sums": max(
            (row["difference_float32_sums"] for row in measured), default=None
        ),
        "figures": figures(Figure(what, worst, most=ALLOWED)),
    }


def _model(name: str, share: float, seeds: int) -> list[Document]:
    from prunec.progress import Silent
    from prunec.runs.loading import load

    say(f"{name}: loading")
    loaded = load(str(model(name)), trust_remote_code=False, need_weights=True, progress=Silent())
    law = _Law(loaded, share)
    rows: list[Document] = []
    for role in (*ROLES, TOGETHER):
        roles = ROLES if role == TOGETHER else (role,)
        groups = [g for g in loaded.coupling.groups if g.size > 1 and g.role in roles]
        if not groups:
            rows.append({"model": name, "role": role, "reason": _why_not(loaded, role)})
            say(f"{name}, {role}: none, {rows[-1]['reason']}")
            continue
        for seed in range(seeds):
            row = {"model": name, "role": role, "seed": seed, **law.check(groups, seed)}
            rows.append(row)
            say(f"{name}, {role}: {row['difference']:.2e} ({row['groups']} groups)")
    return rows


class _Law:
    def __init__(self, loaded: Loaded, share: float) -> None:
        from prunec.backends.interpreter import execute
        from prunec.measuring.feeds import InputSpec, example_feeds

        self.loaded, self.share = loaded, share
        specs = [
            InputSpec(v.name[1:], {"i64": "int64"}.get(v.type.dtype, "float32"), v.type.shape)
            for v in loaded.graph.inputs
        ]
        self.feeds = [example_feeds(specs, batch=b, length=t, seed=b) for b, t in SHAPES]
        self.dense = list(execute(loaded.graph, loaded.weights, self.feeds))

    def check(self, groups: Sequence[Group], seed: int) -> Document:
        """Prune a share of the groups at random and compare with masking."""
        import numpy as np

        from prunec.backends.interpreter import execute
        from prunec.backends.masked import execute_masked
        from prunec.passes.dce import dce
        from prunec.passes.rewrite import Rewritten, rewrite
        from prunec.runs.loading import SlicedWeights

        loaded, rng = self.loaded, np.random.default_rng(seed)
        start = time.perf_counter()
        selections = {g.name: self._some(g, rng) for g in groups}
        rewritten = rewrite(loaded.coupling, selections)
        rewritten = Rewritten(dce(rewritten.graph), rewritten.kept)
        weights = SlicedWeights(loaded.weights, rewritten.kept)
        dense = loaded.weights

        def both(in_double: Collection[str]) -> tuple[Outputs, Outputs]:
            """The outputs of the smaller program and of the masked one."""
            masked = execute_masked(
                loaded.coupling, selections, rewritten, dense, self.feeds, in_double
            )
            return list(execute(rewritten.graph, weights, self.feeds, in_double)), list(masked)

        exact, exact_masked = both({c.op for c in loaded.coupling.contractions})
        found, masked = both(())
        return {
            "groups": len(groups),
            "removed": sum(g.size - selections[g.name].count for g in groups),
            "of": sum(g.size for g in groups),
            "ragged": sum(s.parent is not None for s in selections.values()),
            "difference": _worst(exact, exact_masked),
            "difference_float32_sums": _worst(found, masked),
            "rounding": _worst(found, exact),
            "moved": _worst(found, self.dense),
            "seconds": round(time.perf_counter() - start, 1),
        }

    def _some(self, group: Group, rng: np.random.Generator) -> Selection:
        import numpy as np

        from prunec.ir.axes import Selection

        keep = max(1, min(group.size - 1, round(group.size * (1 - self.share))))
        rows = self.loaded.coupling.by_name[group.parent].size if group.parent else 1
        drawn = [np.sort(rng.choice(group.size, keep, replace=False)) for _ in range(rows)]
        return Selection(np.stack(drawn) if group.parent else drawn[0], group.parent)


def _worst(found: Outputs, wanted: Outputs) -> float:
    from prunec.output.checking import relative_difference

    return max(relative_difference(a, b) for a, b in zip(found, wanted, strict=True))


def _why_not(loaded: Loaded, role: str) -> str:
    pins = [p for p in loaded.coupling.pinned if p.role == role]
    if pins:
        return f"{pins[0].axis} is pinned: {pins[0].reason} ({pins[0].where or pins[0].places[0]})"
    if any(g.role == role for g in loaded.coupling.groups):
        return "its groups have one index only"
    if role == "kv_head" and any(g.role == "query_head" for g in loaded.coupling.groups):
        return "no query heads share a KV head, so each leaves with its query head"
    return "the model has no such axis"


if __name__ == "__main__":
    main(run)
