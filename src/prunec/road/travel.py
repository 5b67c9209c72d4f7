"""Go a road: stage after stage, each whole in a folder of its own, finished ones left as they are.

OUT holds a folder for each stage and, from the first finished one on, `report.json`, which says
what was done under which key. A stage whose key is there and whose folder stands is not done
again; when an earlier one changes, all after it do, since keys are chained.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunec.ir.diagnostics import Diagnostic, Exit, fail
from prunec.options.recipe import MODEL, check_files, spelled, write_whole
from prunec.options.recipe import Recipe as Written
from prunec.options.recipe_fields import absolute
from prunec.output.staging import Formats, check_output
from prunec.progress import Progress
from prunec.reports.data import plain
from prunec.road.planning import PLACES, Planned, hash_model, plan_road
from prunec.road.reading import Road, read_road
from prunec.road.report import RoadReport, StageRow
from prunec.road.verbs import STAGES, exit_code

__all__ = ["RoadOptions", "travel"]


@dataclass(frozen=True)
class RoadOptions:
    """What `prunec run` is told. `model` wins over the recipe's; `dry_run` checks and lists."""

    recipe: Path
    out: Path
    model: str | None = None
    overwrite: bool = False
    dry_run: bool = False
    trust_remote_code: bool = False


def travel(options: RoadOptions, progress: Progress) -> RoadReport:
    """Do what a recipe says, from where an earlier run in the same OUT stopped.

    Everything that can be checked without work is checked first, for all stages; raises
    PrunecError (exit 2) with all mistakes. What a stage raises is raised after it is told which
    ones are done.
    """
    road = _road(options)
    check_output(options.out, overwrite=True, sources=_sources(road))
    planned = plan_road(road, options.out, trust=options.trust_remote_code)
    done = _earlier(options)
    if options.dry_run:
        rows = [_kept(stage, done, options.out) or _ahead(stage) for stage in planned]
        return RoadReport(road.model, str(options.out), str(options.recipe), tuple(rows))
    options.out.mkdir(parents=True, exist_ok=True)
    return _Travel(options, road, progress).go(planned, done)


@dataclass
class _Travel:
    options: RoadOptions
    road: Road
    progress: Progress

    def go(self, planned: Sequence[Planned], done: dict[str, StageRow]) -> RoadReport:
        rows: list[StageRow] = []
        for stage in planned:
            row = _kept(stage, done, self.options.out)
            if row is None:
                row = self._done(stage, rows)
            else:
                self.progress.note(f"{stage.name}: done before")
            rows.append(row)
            self._write(rows, planned)
        self._sweep(planned)
        return self._report(rows)

    def _done(self, stage: Planned, rows: Sequence[StageRow]) -> StageRow:
        self.progress.note(f"{stage.name} ...")
        out, start = self.options.out / stage.name, time.perf_counter()
        try:
            report = STAGES[stage.verb].run(stage.options, out, self.progress)
        except BaseException:
            finished = ", ".join(row.name for row in rows) or "nothing before it"
            self.progress.note(
                f"{stage.name} is not done; finished and usable in {self.options.out}: {finished}."
                f" The same command goes on with {stage.name}."
            )
            raise
        code = exit_code(report)
        if code:
            fact = f"{stage.name} is done and missed its target or a check"
            self.progress.warn(Diagnostic("P882", fact, str(out), help="see its report.json"))
        seconds = round(time.perf_counter() - start, 3)
        told = plain(report.to_json())
        return StageRow(stage.name, stage.verb, stage.key, seconds, code, _bytes(out), told)

    def _write(self, rows: Sequence[StageRow], planned: Sequence[Planned]) -> None:
        """The recipe and the report so far; the report is there wholly or not at all."""
        out, trust = self.options.out, self.options.trust_remote_code
        if len(rows) == len(planned):
            stages = [{s.verb: _portable(s)} for s in planned]
            files = dict.fromkeys(f for s in planned for f in s.options.read_files)
            write_whole(
                out / Formats.RECIPE, {"verb": "run", "stages": stages}, self.road.model,
                hash_model(self.road.model, trust), files,
            )  # fmt: skip
        partial = out / f".{Formats.REPORT}.partial"
        partial.write_text(json.dumps(self._report(rows).to_json(), indent=1), encoding="utf-8")
        partial.replace(out / Formats.REPORT)

    def _report(self, rows: Sequence[StageRow]) -> RoadReport:
        road, options = self.road, self.options
        return RoadReport(road.model, str(options.out), str(options.recipe), tuple(rows))

    def _sweep(self, planned: Sequence[Planned]) -> None:
        """Folders of stages that an earlier recipe had and this one has not."""
        names = {stage.name for stage in planned}
        for folder in _stage_folders(self.options.out):
            if folder.name not in names:
                shutil.rmtree(folder)


def _road(options: RoadOptions) -> Road:
    """The recipe with the model that is meant; what it read must be what it was."""
    road = read_road(options.recipe)
    names = {} if options.model else {road.model: MODEL}
    names |= {name: "data" for name in road.files if name != road.model}
    check_files(Written(road.path, road.model, {}, road.files), names)
    model = options.model or road.model
    if model:
        return replace(road, model=absolute(model))
    raise fail(
        "P900",
        "the recipe names no model",
        where=str(options.recipe),
        help="write `model: FOLDER` into it, or add MODEL to the command",
        exit_code=Exit.USAGE,
    )


def _sources(road: Road) -> list[Path]:
    """What must not be replaced."""
    path = Path(road.model).expanduser()
    return [road.path, *([path] if path.exists() else [])]


def _earlier(options: RoadOptions) -> dict[str, StageRow]:
    """Stages of an earlier run in OUT, by key. Raises P821 for a folder that is no run's."""
    out = options.out
    if not out.exists() or not any(out.iterdir()):
        return {}
    try:
        told = json.loads((out / Formats.REPORT).read_text(encoding="utf-8"))
        rows = [StageRow(**row) for row in told["stages"]]
    except (OSError, ValueError, TypeError, KeyError):
        if _unfinished(out) or options.overwrite:
            return {}
        raise fail(
            "P821",
            f"output {out} exists and is no folder of prunec run",
            where="-o",
            help="choose another folder, or add --overwrite",
            exit_code=Exit.USAGE,
        ) from None
    return {} if options.overwrite else {row.key: row for row in rows}


def _unfinished(out: Path) -> bool:
    """Whether all that lies there is what a run leaves that has finished no stage."""
    own = {folder.name for folder in _stage_folders(out)}
    return all(entry.name in own or entry.name.startswith(".") for entry in os.scandir(out))


def _stage_folders(out: Path) -> list[Path]:
    """Folders named as stages are."""
    return [
        folder
        for verb in STAGES
        for folder in sorted(out.glob(f"[0-9]*-{verb}"))
        if folder.is_dir() and folder.name.partition("-")[0].isdecimal()
    ]


def _kept(stage: Planned, done: dict[str, StageRow], out: Path) -> StageRow | None:
    """What an earlier run tells of the stage, if it is done and still there."""
    row = done.get(stage.key)
    if row is None or row.name != stage.name or not (out / stage.name).is_dir():
        return None
    return replace(row, kept=True)


def _ahead(stage: Planned) -> StageRow:
    return StageRow(stage.name, stage.verb, "", 0.0, 0, {}, {})


def _portable(stage: Planned) -> dict[str, Any]:
    """The options of a stage for a recipe: those that say something."""
    return {name: value for name, value in spelled(stage.options).items() if value is not None}


def _bytes(folder: Path) -> dict[str, int]:
    """What the files of each format weigh."""
    found = {kind: (folder / place).parent if Path(place).suffix else folder / place
             for kind, place in PLACES.items()}  # fmt: skip
    return {
        kind: sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        for kind, place in found.items()
        if place.is_dir()
    }
