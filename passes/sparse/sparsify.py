"""Zero single weights, site by site along the program, each judged by what it will really read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from prunec.ir.diagnostics import Diagnostic, PrunecError, fail
from prunec.passes.compress import Finished, Journal
from prunec.passes.profile import Array, Moments, Stream, Weights
from prunec.passes.sparse.layers import Layer
from prunec.passes.sparse.patterns import NofM, Pattern, Share
from prunec.passes.sparse.pruners import Pruner
from prunec.passes.sparse.sites import Site, moments_of, sites

__all__ = ["check_fits", "sparsify"]

SHOWN = 3


def check_fits(layers: Sequence[Layer], weights: Mapping[str, int], pattern: Pattern) -> None:
    """Raise PrunecError (P851) when M does not divide the inputs of a layer; `weights` gives the
    inputs of each."""
    if not isinstance(pattern, NofM):
        return
    wrong = [y for y in layers if weights[y.weight] % pattern.of]
    if not wrong:
        return
    told = ", ".join(f"{y.weight} ({weights[y.weight]})" for y in wrong[:SHOWN])
    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    raise PrunecError(
        [
            Diagnostic(
                "P851",
                f"{pattern} does not fit: {pattern.of} does not divide the inputs of {told}{more}",
                f"{wrong[0].weight}[{wrong[0].dim}]",
                help="choose another pattern, or leave these layers as they are with --leave",
            )
        ]
    )


def sparsify(
    layers: Sequence[Layer],
    pruner: Pruner,
    pattern: Pattern,
    shares: Mapping[str, float],
    weights: Weights,
    replace: Callable[[Weights], None],
    stream: Stream | None = None,
    step: Callable[[], None] = lambda: None,
    journal: Journal | None = None,
) -> None:
    """Hand the sparse weights to `replace`, site by site: that of the stream where there is one.

    `shares` says how much of each layer becomes zero where `pattern` is no N:M. Sites that the
    `journal` has are taken from it; the others go into it.
    """
    for number, site in enumerate(sites(layers)):
        known = journal.load(number) if journal is not None else None
        changed = known.weights if known is not None else None
        if changed is None:
            seen = None
            if stream is not None and pruner.needs is not None:
                seen = site.observe(stream, pruner.needs)
            changed = _pruned(site, pruner, pattern, shares, weights, seen)
            if journal is not None:
                journal.save(number, Finished({}, changed, {}))
        replace(changed)
        step()


def _pruned(
    site: Site,
    pruner: Pruner,
    pattern: Pattern,
    shares: Mapping[str, float],
    weights: Weights,
    seen: Moments | None,
) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for layer in site.layers:
        weight = weights[layer.weight]
        _check_finite(layer.weight, weight)
        own = pattern if isinstance(pattern, NofM) else Share(shares[layer.weight])
        inputs = weight.shape[layer.dim] if seen is None else len(seen.squares)
        moments = [] if seen is None else moments_of(layer, weights, seen)
        table = pruner.prune(layer.table(weight, inputs), moments, own)
        found[layer.weight] = layer.stored(table, weight.shape)
    return found


def _check_finite(name: str, weight: Array) -> None:
    if np.isfinite(weight).all():
        return
    raise fail(
        "P311",
        f"{name} holds values that are not finite, so its entries cannot be compared",
        where=name,
        help="check the original checkpoint; it may be damaged, or overflow in its own format",
    )
