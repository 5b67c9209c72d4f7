"""Prune, recover, prune on: the target is reached in even steps with a recovery after each.

Every round is a `prune` and a `recover` of its own, with folders of their own in the state beside
OUT, so that an interrupted run goes on in the round where it stopped. The dense model teaches in
all of them. What is written tells of the whole way: the plan in indices of the dense model, sizes
and losses against it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunec.frontends.calibration import calibration
from prunec.frontends.hf import build_meta, load_config
from prunec.frontends.mixture import parse_mixture, spell_mixture
from prunec.ir.diagnostics import fail
from prunec.options.prune import PruneOptions
from prunec.options.recipe import versions, write_recipe
from prunec.options.request import sources
from prunec.options.rounds import parse_recovery, parse_step, shares
from prunec.options.target import Target
from prunec.output.own_code import find_source
from prunec.output.staging import Formats, staged
from prunec.planning.planfile import write_plan
from prunec.progress import Progress
from prunec.recovery.options import RecoverOptions
from prunec.recovery.run import recover
from prunec.reports.data import (
    Check,
    GroupRow,
    PinRow,
    PruneReport,
    Sizes,
    SourceRow,
    TargetRow,
    WrittenFormat,
)
from prunec.resume.hashes import hash_source
from prunec.resume.state import State, forget_state, kept_state, state_key
from prunec.verbs.pipeline import prune, write_reports

__all__ = ["compose_plans", "prune_in_rounds"]

OWN_TEXT = "self.npz"
PLAN_KEYS = {"version", "removed", "parameters", "shapes", "groups", "pinned"}
"""All that composing understands of a plan."""

Document = dict[str, Any]


@dataclass(frozen=True)
class _Round:
    """What one round did, as its two reports tell."""

    folder: Path
    pruned: Document
    recovered: Document
    plan: Document


def prune_in_rounds(options: PruneOptions, progress: Progress) -> PruneReport:
    """Prune as `options` (settled) say, recovering each time that `recover_every` is gone."""
    assert options.out is not None, "options are checked"
    path = Path(options.model).expanduser()
    digest = hash_source(path) if path.exists() else options.model
    with staged(options.out, overwrite=options.overwrite, sources=sources(options)) as stage:
        if not options.resume:
            forget_state(options.out)
        with kept_state(options.out, state_key(options, digest), resume=True) as state:
            assert state is not None
            rounds = _Rounds(options, progress, state).run()
            return _written(options, rounds, stage, state, progress, digest)


@dataclass(frozen=True)
class _Rounds:
    options: PruneOptions
    progress: Progress
    state: State

    def run(self) -> list[_Round]:
        """All rounds, those that were done before as they are."""
        options = _with_own_text(self.options, self.state, self.progress)
        step = parse_step(options.recover_every)
        steps = max((shares(t.value, step) for t in options.targets), key=len)
        done: list[_Round] = []
        for number in range(len(steps)):
            targets = tuple(
                _asked(i, t, 1 - (1 - t.value) * (number + 1) / len(steps), done)
                for i, t in enumerate(options.targets)
            )
            self.progress.note(
                f"round {number + 1} of {len(steps)}: {', '.join(t.text for t in targets)}"
            )
            done.append(self._round(number, options, targets, done))
        return done

    def _round(
        self,
        number: int,
        options: PruneOptions,
        targets: tuple[Target, ...],
        done: Sequence[_Round],
    ) -> _Round:
        small, healed = (self.state.folder / f"round-{number}{end}" for end in ("-pruned", ""))
        if not healed.exists():
            if not small.exists():
                prune(_one_shot(options, targets, small, done), self.progress)
            recover(self._recovery(options, small, healed), self.progress)
        return _Round(healed, *map(_read, (
            small / Formats.REPORT, healed / Formats.REPORT, small / Formats.PLAN
        )))  # fmt: skip

    def _recovery(self, options: PruneOptions, small: Path, healed: Path) -> RecoverOptions:
        return parse_recovery(
            options.recover,
            model=str(small),
            out=healed,
            data=options.calibration if options.calibrated else "self",
            teacher=options.model,
            seed=options.seed,
            trust_remote_code=options.trust_remote_code,
            resume=True,
        )


def compose_plans(first: Document, second: Document) -> Document:
    """The plan that does at once what two plans do one after the other.

    Raises P837 for plans with parts whose composition is not known.
    """
    unknown = (first.keys() | second.keys()) - PLAN_KEYS
    if unknown:
        raise fail(
            "P837",
            f"plans with {', '.join(sorted(unknown))} cannot be composed over rounds",
            help="prune to the target at once and use `prunec recover` afterwards",
        )
    parameters = {name: dict(dims) for name, dims in first["parameters"].items()}
    shapes = dict(first["shapes"])
    for name, dims in second["parameters"].items():
        shapes.setdefault(name, second["shapes"][name])
        known = parameters.setdefault(name, {})
        for dim, kept in dims.items():
            known[dim] = np.asarray(known[dim])[kept].tolist() if dim in known else kept
    left = {group["name"]: group["kept"] for group in second["groups"]}
    groups = [g | {"kept": left.get(g["name"], g["kept"])} for g in first["groups"]]
    removed = [*first.get("removed", ()), *second.get("removed", ())]
    return first | {
        "removed": removed, "parameters": parameters, "shapes": shapes, "groups": groups,
    }  # fmt: skip


def _one_shot(
    options: PruneOptions, targets: tuple[Target, ...], out: Path, done: Sequence[_Round]
) -> PruneOptions:
    """One round's pruning: of the dense model, or of what the last round made of it."""
    first = replace(
        options, out=out, targets=targets, formats=("hf",), recover_every="", recover="",
        recipe=None, resume=True, overwrite=False,
    )  # fmt: skip
    if not done:
        return first
    return replace(first, model=str(done[-1].folder / Formats.HF))


def _asked(index: int, target: Target, share: float, done: Sequence[_Round]) -> Target:
    """A target of one round, relative to what the last one left."""
    value = share
    if done:
        dense = done[0].pruned["targets"][index]["dense"]
        value = share * dense / done[-1].pruned["targets"][index]["left"]
    return replace(target, value=value, text=f"{target.metric}={100 * value:.4g}%")


def _with_own_text(options: PruneOptions, state: State, progress: Progress) -> PruneOptions:
    """The dense model writes once, for calibration and recovery of all rounds."""
    parts = parse_mixture(options.calibration) if options.calibrated else parse_mixture("self")
    if all(part.path is not None for part in parts):
        return options
    file = state.folder / OWN_TEXT
    wanted = parse_recovery(options.recover, model=options.model, out=state.folder, data="self")
    assert wanted.samples is not None, "options are settled"
    if not file.exists():
        source = find_source(options.model, trust_remote_code=options.trust_remote_code)
        config = load_config(source)
        model = build_meta(config, trust_remote_code=source.trust_remote_code)
        with progress.step("The dense model writes text"):
            found = calibration(source, model, "self", wanted.samples, wanted.length, options.seed)
        partial = file.with_suffix(".partial")
        with partial.open("wb") as stream:
            np.savez(stream, **found.inputs)  # type: ignore[arg-type]
        partial.rename(file)
    named = tuple(replace(p, place=str(file)) if p.path is None else p for p in parts)
    calibrated = spell_mixture(named) if options.calibrated else options.calibration
    return replace(options, calibration=calibrated, calibration_length=wanted.length)


def _written(
    options: PruneOptions,
    rounds: Sequence[_Round],
    stage: Path,
    state: State,
    progress: Progress,
    digest: str,
) -> PruneReport:
    """OUT as one run would have left it."""
    last = rounds[-1]
    formats = []
    if "hf" in options.formats:
        shutil.copytree(last.folder / Formats.HF, stage / Formats.HF)
        size = sum(f.stat().st_size for f in (stage / Formats.HF).iterdir())
        formats.append(WrittenFormat("hf", Formats.HF, size))
    others = tuple(name for name in options.formats if name != "hf")
    if others:
        formats += _other_formats(options, others, last, stage, state, progress)
    plan = rounds[0].plan
    for later in rounds[1:]:
        plan = compose_plans(plan, later.plan)
    write_plan(plan, stage / Formats.PLAN)
    write_recipe(stage / Formats.RECIPE, options, digest)
    report = _report(options, rounds, formats)
    write_reports(report, stage)
    return report


def _other_formats(
    options: PruneOptions,
    names: tuple[str, ...],
    last: _Round,
    stage: Path,
    state: State,
    progress: Progress,
) -> list[WrittenFormat]:
    """The recovered model in other formats: pruned once more, by a plan that keeps all of it."""
    name, dims = next(iter(last.plan["parameters"].items()))
    whole = {dim: list(range(len(kept))) for dim, kept in dims.items()}
    plan, out = state.folder / "whole.json", state.folder / "formats"
    plan.write_text(json.dumps({"parameters": {name: whole}}), encoding="utf-8")
    if not out.exists():
        given = replace(
            _one_shot(options, (), out, (last,)), plan=plan, formats=names,
            calibration="none", restore="none",
        )  # fmt: skip
        prune(given, progress)
    found = [WrittenFormat(**row) for row in _read(out / Formats.REPORT)["formats"]]
    for row in found:
        folder = Path(row.path).parent
        shutil.copytree(out / folder, stage / folder)
    return found


def _report(
    options: PruneOptions, rounds: Sequence[_Round], formats: Sequence[WrittenFormat]
) -> PruneReport:
    """The last round's report, told against the dense model."""
    first, last = rounds[0].pruned, rounds[-1].pruned
    targets = []
    for target, before, after in zip(
        options.targets, first["targets"], last["targets"], strict=True
    ):
        dense, left = before["dense"], after["left"]
        targets.append(
            TargetRow(target.text, dense, target.limit(dense), left, target.met(dense, left))
        )
    left_of = {group["name"]: group["kept"] for group in last["groups"]}
    groups = [GroupRow(**g | {"kept": left_of.get(g["name"], g["kept"])}) for g in first["groups"]]
    return PruneReport(
        model=options.model,
        out=str(options.out),
        method=options.method,
        restore=options.restore,
        calibration=options.calibration,
        layout=options.layout,
        dense=Sizes(**first["dense"]),
        pruned=Sizes(**last["pruned"]),
        targets=tuple(targets),
        groups=tuple(groups),
        pinned=tuple(PinRow(**row) for row in first["pinned"]),
        formats=tuple(formats),
        checks=tuple(
            Check(**{k: v for k, v in row.items() if k != "passed"}) for row in last["checks"]
        ),
        sources=_sources(rounds[-1].recovered),
        seconds=_seconds(rounds),
        notes={**last["notes"], "rounds": [_row(r) for r in rounds]},
        seed=options.seed,
        remote_code=options.trust_remote_code,
        versions=versions(),
    )


def _sources(recovered: Document) -> tuple[SourceRow, ...]:
    """Losses by source after the last recovery; none where the model predicts no tokens."""
    gains = [gain for gain in recovered["gains"] if gain["after"] is not None]
    return tuple(
        SourceRow(
            name=gain["name"],
            origin=gain["name"],
            weight=1 / len(gains),
            windows=recovered["windows"],
            measured=gain["windows"],
            held_out=gain["held_out"],
            tokens=gain["windows"] * (recovered["length"] - 1),
            metric="cross_entropy",
            dense=gain["dense"],
            pruned=gain["after"],
        )
        for gain in gains
    )


def _seconds(rounds: Sequence[_Round]) -> Mapping[str, float]:
    """Time by part, over all rounds."""
    total: dict[str, float] = {}
    for done in rounds:
        for part, report in (("prune", done.pruned), ("recover", done.recovered)):
            total[part] = total.get(part, 0.0) + sum(report["seconds"].values())
    return {name: round(value, 3) for name, value in total.items()}


def _row(done: _Round) -> Document:
    """One round, for the report."""
    kept = ("steps", "best_step", "tokens", "before", "after", "gains")
    left = {row["text"]: row["left"] for row in done.pruned["targets"]}
    return {"left": left, **{key: done.recovered[key] for key in kept}}


def _read(file: Path) -> Document:
    found: Document = json.loads(file.read_text(encoding="utf-8"))
    return found
