"""Every criterion on whole models of several families, from a stream and from autograd.

Values are compared with references elsewhere; here: no family needs code of its own.
"""

from __future__ import annotations

import numpy as np
import pytest
import zoo

from prunec.backends.tensors import as_array
from prunec.backends.torch_gradients import TorchGradients
from prunec.backends.torch_stream import TorchStream
from prunec.ir.dialects.aten import ATEN
from prunec.passes.compress import sites
from prunec.passes.couple import couple
from prunec.passes.coupling import Consumer, Coupling, Group, Place
from prunec.passes.criteria import CRITERIA
from prunec.passes.criteria.gradient import gradient_places
from prunec.passes.profile import Moments, Slopes, Weights
from prunec.passes.score import Choosing, Curved, Sloped, Watching, group_shape

Observed = list[tuple[Consumer, Moments]]


@pytest.mark.parametrize("name", ["llama", "gpt2", "resnet"])
def test_every_criterion_scores_every_group(name: str) -> None:
    """Query heads in rows, Conv1D's transposed weights, images."""
    model = zoo.model(name)
    coupling = couple(model.traced.graph, ATEN)
    weights = {key: as_array(model.weights[key]) for key in coupling.graph.parameters}
    given = zoo.inputs(name, batch=3, length=9)
    batch = {v.name[1:]: np.asarray(given[v.name[1:]]) for v in coupling.graph.inputs}
    groups = [g for g in coupling.groups if g.size > 1]
    places = {p: None for group in groups for p in gradient_places(coupling, group)}
    slopes = TorchGradients(coupling.graph, weights, [batch]).slopes(places)
    with TorchStream(coupling.graph, weights, [batch]) as stream:
        for site in sites(coupling, groups):
            watched = dict.fromkeys(site.consumers)
            for group in site.groups:
                watched |= dict.fromkeys(watches(coupling, group))
            observed: Observed = []
            if site.consumers:
                seen = stream.observe(list(watched), frozenset({"gram", "absolute"}))
                observed = [(c, s.whole.moments) for c, s in zip(watched, seen, strict=True)]
            for group in site.groups:
                check(coupling, group, weights, observed, slopes)


def watches(coupling: Coupling, group: Group) -> tuple[Consumer, ...]:
    made = CRITERIA["slimllm"]()
    assert isinstance(made, Watching)
    return made.watches(coupling, group)


def check(
    coupling: Coupling,
    group: Group,
    weights: Weights,
    observed: Observed,
    slopes: dict[Place, Slopes],
) -> None:
    shape = group_shape(coupling, group)
    for name, make in CRITERIA.items():
        made = make()
        if isinstance(made, Sloped):
            made = made.with_slopes(slopes)
        scores = made.score(coupling, group, weights, observed)
        assert scores.shape == shape, (group.name, name)
        assert np.isfinite(scores).all(), (group.name, name)
        if isinstance(made, Choosing):
            count = max(1, group.size // 2)
            kept = made.choose(coupling, group, weights, observed, count).kept
            assert kept.shape == (*shape[:-1], count), (group.name, name)
            assert (np.diff(kept, axis=-1) > 0).all()
            assert kept.min() >= 0
            assert kept.max() < group.size
        if isinstance(made, Curved):
            curve = made.rank(coupling, group, weights, observed).curve
            assert (curve is None) == (not group.consumers)
            if curve is not None:
                assert curve.shape == (group.size + 1,)
                assert curve[-1] == 0
                assert (np.diff(curve) <= 0).all()
