"""The Python API: load a model, look at it, prune it, use or save what is left.

    model = prunec.load("./smollm2")          # or a torch.nn.Module with example inputs
    print(model.inspect().sizes.params)
    small = model.prune(target="params=85%")
    small.module                              # a torch.nn.Module
    small.save("small")                       # what `prunec prune` writes

Options have the names, meanings and defaults of the command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunec.ir.diagnostics import Exit, fail
from prunec.options.prune import GIVEN, InspectOptions, PruneOptions
from prunec.options.target import parse_targets
from prunec.progress import Progress, Silent
from prunec.reports.data import Check, InspectReport, PruneReport

if TYPE_CHECKING:
    import torch

    from prunec.runs.live import Example, Live
    from prunec.runs.loading import Loaded
    from prunec.verbs.pipeline import Pruned

    Batches = Sequence[Example]

__all__ = ["Model", "PrunedModel", "load"]


def load(
    model: str | Path | torch.nn.Module,
    example: Example | None = None,
    *,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> Model:
    """A model to inspect and prune: a folder, hub id or `.gguf` file, or a module in memory.

    A module needs `example` inputs: a tensor, a sequence of them in the order of `forward`'s
    arguments, or a mapping by name. Models of transformers need none. Shapes and dtypes decide;
    `PrunedModel.check` also uses the values. `dynamic` names the dimensions that may vary, as in
    `{"x": {0: "batch", 1: "time"}}`; without it the first one of every input does.

    A path is looked at when it is first needed. `progress` shows bars on standard error. Raises
    PrunecError for whatever the caller can mend: no such model, a damaged checkpoint, a module
    that cannot be traced.
    """
    told = _console() if progress else Silent()
    if isinstance(model, str | Path):
        return Model(str(model), trust_remote_code, told)
    from prunec.runs.live import load_module

    live = load_module(model, example, dynamic, told)
    return Model(type(model).__name__, trust_remote_code, told, live)


@dataclass(frozen=True)
class Model:
    """A model that can be pruned any number of times; it is never changed itself."""

    name: str
    _trust: bool = field(default=False, repr=False)
    _progress: Progress = field(default_factory=Silent, repr=False)
    _live: Live | None = field(default=None, repr=False)

    def inspect(self) -> InspectReport:
        """What can be removed together, at what cost, and why the rest cannot: `.groups`,
        `.sizes` and `.pinned`. A folder or file is not asked for weights."""
        from prunec.reports.summary import inspect_report
        from prunec.verbs.pipeline import inspect

        options = InspectOptions(self.name, self._trust)
        if self._live is not None:
            return inspect_report(self._live.loaded, options)
        return inspect(options, self._progress)

    def prune(
        self,
        target: str | Sequence[str] = (),
        *,
        calibration: str | Path | Batches | None = None,
        **options: Any,
    ) -> PrunedModel:
        """A smaller model; this one stays as it is.

        `target` says what remains: `"params=85%"`, or several. `calibration` is what the command
        line takes (`"text.txt:0.7,more.jsonl:0.3"`, `"self"`, `"none"`), or a sequence of batches,
        each given as `example` is to `load`; a module in memory needs batches unless the method
        looks at weights alone. `options` are those of `prunec prune`: `method`, `groups`, `plan`,
        `allocate`, `restore`, `round_to`, `steps`, `depth`, `experts`, `batch`, `length`, `dtype`,
        `runtime`, `phase`, `threads`, `layout`, `formats`, `seed`, `calibration_samples`,
        `calibration_length`, `activation_budget`, `allow_interface_change`, `engine`, `workers`.

        Raises PrunecError for wrong options and for targets that cannot be met.
        """
        from prunec.engines.workers import workers
        from prunec.verbs.pipeline import run_passes

        batches = None if isinstance(calibration, str | Path | None) else calibration
        named = GIVEN if batches is not None else str(calibration or "auto")
        settled = self._settled(target, named, options)
        given = None if batches is None else self._calibrated(batches, settled)
        loaded = None if settled.allow_interface_change else self._loaded
        with workers(settled.engine, settled.workers) as found:
            pruned = run_passes(settled, self._progress, None, loaded, given, found)
        return PrunedModel(pruned, self._progress, self._live)

    @cached_property
    def _loaded(self) -> Loaded:
        if self._live is not None:
            return self._live.loaded
        from prunec.runs.loading import load as read

        return read(
            self.name,
            trust_remote_code=self._trust,
            need_weights=True,
            progress=self._progress,
        )

    def _settled(
        self, target: str | Sequence[str], calibration: str, options: Mapping[str, Any]
    ) -> PruneOptions:
        """Options as the command line has them, every choice made."""
        given = {**options, "calibration": calibration}
        for name in ("groups", "formats"):
            value = given.get(name, ())
            given[name] = (value,) if isinstance(value, str) else tuple(value)
        if given.get("plan") is not None:
            given["plan"] = Path(given["plan"])
        if not given["formats"] and self._live is not None and self._live.loaded.config is None:
            given["formats"] = ("onnx",)  # no checkpoint can be written of it
        targets = parse_targets((target,) if isinstance(target, str) else target)
        _check_names(options)
        settled = PruneOptions(
            self.name, targets=targets, trust_remote_code=self._trust, **given
        ).settle()
        if self._live is not None:
            _check_live(self._live, settled)
        return settled

    def _calibrated(self, batches: Batches, options: PruneOptions) -> Any:
        from prunec.runs.calibrating import given_batches
        from prunec.runs.live import as_fed, named_inputs

        reader = self._live.module if self._live is not None else self._loaded.model
        fed = [as_fed(named_inputs(reader, batch)) for batch in batches]
        return given_batches(self._loaded, fed, options)


@dataclass(frozen=True)
class PrunedModel:
    """What `Model.prune` made."""

    _pruned: Pruned = field(repr=False)
    _progress: Progress = field(repr=False)
    _live: Live | None = field(repr=False, default=None)

    @cached_property
    def report(self) -> PruneReport:
        """Costs dense and pruned, what was kept of each group, and the loss on calibration data
        that was held out (on the first of them where none was)."""
        from prunec.reports.summary import prune_report
        from prunec.verbs.pipeline import measured

        return prune_report(self._pruned, (), (), measured(self._pruned, self._progress))

    @cached_property
    def module(self) -> torch.nn.Module:
        """The smaller model, to call, fine-tune and save; its state dict has the dense names.

        Of a checkpoint it is what `from_pretrained` gives. Of a module it is a copy of the same
        class in the same training mode; where the class cannot hold the sizes, it is the traced
        program instead, in evaluation mode, and a warning says so.
        """
        from prunec.module import checkpoint_module, live_module

        if self._pruned.layout is not None:
            return checkpoint_module(self._pruned)
        if self._live is not None:
            return live_module(self._pruned, self._live)
        raise fail(
            "P134",
            "no Hugging Face checkpoint was asked for, which the module would be made of",
            help='add "hf" to formats',
        )

    def check(self) -> Check:
        """Law 1: the smaller program against the dense one with the removed indices zeroed, on
        the example inputs of a module, else on seeded ones. `.passed` tells; allowed is 1e-5."""
        from prunec.output.checking import examples, law_1

        return law_1(self._pruned, examples(self._pruned))

    def save(
        self, out: str | Path, *, overwrite: bool = False, verify: bool = False
    ) -> PruneReport:
        """Write the folder that `prunec prune` writes, in the formats that `prune` was given.

        By default these are `hf` for models of transformers and `onnx` for other modules. `out`
        appears when it is whole. With `verify` law 1 and all formats are checked; the exit code
        of the report tells. Raises PrunecError when `out` exists or cannot be written.
        """
        from prunec.options.request import sources
        from prunec.output.staging import staged
        from prunec.resume.hashes import source_hash
        from prunec.verbs.pipeline import write

        options = replace(self._pruned.options, out=Path(out), overwrite=overwrite, verify=verify)
        loaded = self._pruned.loaded
        if self._live is None and loaded.digest is None:
            path = loaded.source.path
            loaded = replace(loaded, digest=source_hash(path))
        pruned = replace(self._pruned, options=options, loaded=loaded)
        read = () if self._live is not None else sources(options)
        with staged(Path(out), overwrite=overwrite, sources=read) as stage:
            return write(pruned, stage, self._progress, self.report.sources)


def _check_names(options: Mapping[str, Any]) -> None:
    """Refuse what is no option, before a dataclass does it in words of its own."""
    known = set(PruneOptions.__dataclass_fields__) - NOT_OPTIONS
    unknown = sorted(options.keys() - known)
    if unknown:
        raise fail(
            "P810",
            f"prune has no option {unknown[0]!r}",
            help=f"one of {', '.join(sorted(known))}",
            exit_code=Exit.USAGE,
        )


NOT_OPTIONS = {
    "model", "out", "targets", "calibration", "trust_remote_code", "recipe", "dry_run", "verify",
    "resume", "overwrite", "json",
}  # fmt: skip
"""Fields of PruneOptions that are said otherwise here."""


def _check_live(live: Live, settled: PruneOptions) -> None:
    """Refuse what a module in memory cannot give."""
    if settled.calibration == "self" and live.loaded.config is None:
        raise fail(
            "P814",
            f"method {settled.method} needs calibration data, and {live.loaded.source.name} cannot"
            " make any",
            help='give batches: prune(..., calibration=[x1, x2]), or use method="magnitude"',
            exit_code=Exit.USAGE,
        )
    if settled.depth_roles:
        raise fail(
            "P810",
            f"{' and '.join(settled.depth_roles)} cannot go from a module in memory",
            help="save the model, and prune the folder",
            exit_code=Exit.USAGE,
        )
    if "hf" in settled.formats and live.loaded.config is None:
        raise fail(
            "P810",
            f"{live.loaded.source.name} is no stock model of transformers: it has no checkpoint",
            help='use formats=("onnx", "torchscript"), and torch.save for the module',
            exit_code=Exit.USAGE,
        )


def _console() -> Progress:
    from prunec.cli.console import Console

    return Console(as_json=True)
