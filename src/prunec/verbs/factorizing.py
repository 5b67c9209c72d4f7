"""`prunec factorize`: matrices become two of low rank, which the emitted program multiplies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunec.ir.axes import Selection
from prunec.ir.diagnostics import Exit, PrunecError, fail
from prunec.ir.dialects.aten import ATEN
from prunec.options.factorize import GATES, FactorizeOptions
from prunec.options.workload import Workload
from prunec.output.emission import emit
from prunec.passes.couple import couple
from prunec.passes.coupling import Coupling, Place
from prunec.passes.dce import dce
from prunec.passes.lowrank import (
    Factors,
    Spectrum,
    energies,
    energy,
    factorable,
    factorize,
    names_of,
    params_left,
    plain,
    uniform,
    whitened,
    worthiest,
)
from prunec.passes.profile import Array
from prunec.passes.rewrite import rewrite
from prunec.passes.sparse import Layer, Layers
from prunec.passes.sparse.sites import sites
from prunec.planning.metering import Meter
from prunec.progress import Progress, Silent
from prunec.reports.card_factorized import render_card
from prunec.reports.factorize import FactorizeReport, factorize_report
from prunec.resume.scratch import Scratch
from prunec.resume.state import State
from prunec.runs.run import Outcome, Run, keep_recipe, load_for, run_staged, write_papers

if TYPE_CHECKING:
    from prunec.verbs.factor_training import FactorTraining

__all__ = ["Factorized", "factorize_model"]

ALLOCATE = {"uniform": uniform, "energy": energy, GATES: energy}
"""Ranks before any training; gates choose theirs in it."""


@dataclass(kw_only=True)
class Factorized(Outcome):
    """A model in factors, before anything is written. `spectra` are of all layers that could go,
    `ranks` of those that went, `left` tells why other matrices stayed, `training` how the factors
    learned, if they did."""

    options: FactorizeOptions
    spectra: Mapping[str, Spectrum]
    ranks: Mapping[str, int]
    left: Mapping[str, str]
    training: Mapping[str, Any]


def factorize_model(options: FactorizeOptions, progress: Progress | None = None) -> FactorizeReport:
    """Factorise a model as `options` (settled) say and write OUT, which appears only when whole."""
    told = progress or Silent()
    if options.dry_run or options.out is None:
        found = _Run(options, load_for(options, told), told).factorized()
        return factorize_report(found, sources=found.loaded.engine.rows(found, told))

    def work(stage: Path, state: State | None) -> FactorizeReport:
        found = _Run(options, load_for(options, told), told, state).factorized()
        written = emit(found, stage, told)
        checks = found.loaded.engine.verify(found, stage, told) if options.verify else ()
        sources = found.loaded.engine.rows(found, told)
        report = factorize_report(found, written, checks, sources)
        keep_recipe(found, stage)
        write_papers(stage, report, render_card(report))
        return report

    return run_staged(options, work)


@dataclass
class _Run(Run[FactorizeOptions]):
    """One run over a loaded model."""

    def factorized(self) -> Factorized:
        found = self._layers()
        training = self._training() if self.options.steps else None
        if training is not None:
            apart = training.without_module(y.weight for y in found.found)
            reasons = dict.fromkeys(apart, "no layer of the module multiplies with it alone")
            own = tuple(y for y in found.found if y.weight not in reasons)
            found = self._some(Layers(own, {**found.left, **reasons}))
        factors = Scratch()
        spectra = self._spectra(found, factors)
        limit = self._limit()
        ranks = self._ranks(spectra, limit)
        if training is not None:
            with self.timed("train"):
                ranks = self._trained(training, spectra, ranks, limit, factors)
        coupling = self._coupled(ranks, factors)
        small = rewrite(coupling, _selections(coupling, ranks))
        parts = {n for name in spectra for n in names_of(name)}
        kept = {n for name in ranks for n in names_of(name)}
        whole = dict.fromkeys(spectra.keys() - ranks.keys(), "two factors would be larger")
        return Factorized(
            loaded=self.loaded,
            options=self.options,
            family=self.family,
            rewritten=replace(small, graph=dce(small.graph)),
            replaced={n: factors[n] for n in factors if n in kept or n not in parts},
            calibrated=self.calibrated,
            warnings=tuple(self.warnings),
            seconds=self.seconds,
            spectra=spectra,
            ranks=ranks,
            left={**found.left, **whole},
            training={} if training is None else training.notes,
        )

    def _training(self) -> FactorTraining:
        """The model as a module that can learn."""
        from prunec.verbs.factor_training import FactorTraining

        return FactorTraining(self.options, self.progress, self.state)

    def _layers(self) -> Layers:
        return self._some(factorable(self.loaded.coupling, self.loaded.cost.outer))

    def _some(self, found: Layers) -> Layers:
        """The layers, if there are any."""
        if found.found:
            return found
        reasons = Counter(found.left.values()).most_common()
        told = "; ".join(f"{reason} ({n} weights)" for reason, n in reasons)
        raise fail(
            "P402",
            f"nothing to factorise: {told or 'it has no matrices'}",
            where=self.loaded.source.name,
            help="linear layers and 1x1 convolutions within blocks can become two; use `prunec"
            " prune` for others",
            exit_code=Exit.USAGE,
        )

    def _spectra(self, found: Layers, factors: Scratch) -> dict[str, Spectrum]:
        """The factors of every layer at full rank, into `factors`, and their singular values."""
        own, spectra = sites(found.found), {}
        with (
            self.timed("factorize"),
            self.progress.step("Factorising", len(own)) as advance,
            self.stream() as stream,
        ):
            for site in own:
                gram = None
                if stream is not None and self.options.method == "svd-llm":
                    gram = site.observe(stream, frozenset({"gram"})).gram
                for layer in site.layers:
                    made = self._factors(layer, gram)
                    spectra[layer.weight] = self._kept(layer, made, factors)
                advance(1)
        return spectra

    def _factors(self, layer: Layer, gram: Array | None) -> Factors:
        weight = self.loaded.weights[layer.weight]
        matrix = weight.reshape(weight.shape[:2])
        matrix = matrix if layer.dim else matrix.T
        if not np.isfinite(matrix).all():
            raise fail(
                "P311",
                f"{layer.weight} holds values that are not finite, so it has no factors",
                where=layer.weight,
                help="check the original checkpoint; it may be damaged",
            )
        return plain(matrix) if gram is None else whitened(matrix, gram)

    def _kept(self, layer: Layer, made: Factors, factors: Scratch) -> Spectrum:
        weight = self.loaded.weights[layer.weight]
        taps = (1,) * (weight.ndim - 2)
        for name, matrix in zip(names_of(layer.weight), (made.first, made.second), strict=True):
            factors[name] = matrix.astype(weight.dtype).reshape(*matrix.shape, *taps)
        return Spectrum(len(made.second), made.first.shape[1], made.singular)

    def _limit(self) -> tuple[float, float]:
        """What remains at most, and what there is."""
        (target,) = self.options.targets
        dense = Meter(self.loaded, Workload()).measure(target, {})
        limit = target.limit(dense)
        if dense <= limit:
            raise PrunecError([target.needless(dense)], Exit.USAGE)
        return limit, dense

    def _ranks(self, spectra: Mapping[str, Spectrum], of: tuple[float, float]) -> dict[str, int]:
        """Ranks that meet the target. Raises P403 when rank 1 everywhere is too much."""
        (target,), (limit, dense) = self.options.targets, of
        mine = params_left(spectra, {})
        ranks = ALLOCATE[self.options.ranks](spectra, int(limit - (dense - mine)))
        ranks = self._rounded(ranks)
        left = dense - mine + params_left(spectra, ranks)
        if target.met(dense, left):
            return ranks
        raise fail(
            "P403",
            f"target {target.text} cannot be met: at rank 1 of each layer {left:,.0f} of"
            f" {dense:,.0f} parameters remain",
            where="--target",
            help=f"ask for at least {target.metric}={100 * left / dense + 0.1:.1f}%, or prune"
            " other groups first",
            exit_code=Exit.NOT_MET,
        )

    def _rounded(self, ranks: Mapping[str, int]) -> dict[str, int]:
        step = self.options.round_to
        return {name: k // step * step or k for name, k in ranks.items()}

    def _trained(
        self,
        training: FactorTraining,
        spectra: Mapping[str, Spectrum],
        ranks: Mapping[str, int],
        of: tuple[float, float],
        factors: Scratch,
    ) -> dict[str, int]:
        """Train the factors, and put what they became in their place; the ranks that they have."""
        names = {name: names_of(name) for name in spectra}
        full = {name: (factors[one], factors[two]) for name, (one, two) in names.items()}
        if self.options.ranks == GATES:
            limit, dense = of
            mine = params_left(spectra, {})
            room = int(limit - (dense - mine))

            def choose(worths: Mapping[str, Array]) -> dict[str, Array]:
                own = self._rounded(worthiest(spectra, room, worths))
                return {
                    n: np.sort(np.argsort(-worths[n], kind="stable")[:k]) for n, k in own.items()
                }

            made = training.gated(full, energies(spectra), mine, room / mine, choose)
        else:
            cut = {n: (full[n][0][:k], full[n][1][:, :k]) for n, k in ranks.items()}
            made = training.trained(cut)
        for name, pair in made.items():
            factors.update(zip(names_of(name), pair, strict=True))
        factors.update(training.others(self.loaded.graph.parameters))
        return {name: len(pair[0]) for name, pair in made.items()}

    def _coupled(self, ranks: Mapping[str, int], factors: Scratch) -> Coupling:
        """The program with layers in two of all ranks that there are; the new axes are groups of
        role `rank`."""
        full = {name: len(factors[names_of(name)[0]]) for name in ranks}
        coupling = couple(factorize(self.loaded.graph, full).graph, ATEN)
        new = {Place(names_of(name)[0], 0) for name in ranks}
        groups = (replace(g, role="rank") if new & {*g.places} else g for g in coupling.groups)
        return replace(coupling, groups=tuple(groups))


def _selections(coupling: Coupling, ranks: Mapping[str, int]) -> dict[str, Selection]:
    """The first ranks of each group of role `rank`, which are the most important ones."""
    found = {}
    for name, rank in ranks.items():
        place = Place(names_of(name)[0], 0)
        (group,) = (g for g in coupling.groups if place in g.places)
        if rank < group.size:
            found[group.name] = Selection(np.arange(rank))
    return found
