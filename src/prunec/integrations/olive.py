"""Microsoft Olive: pruning as a pass of its workflows, and the package config that names it.

    python -m prunec.integrations olive olive_package.json
    olive run --config workflow.json --package-config olive_package.json

The pass is `PrunecPrune`. It takes Hugging Face and ONNX models, and has the options of
`prunec prune` under their names there, with `_` for `-`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from olive.common.config_utils import ParamCategory
from olive.model import HfModelHandler, ONNXModelHandler
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam
from olive.passes.pytorch.common import inherit_hf_from_hf

from prunec.cli.app import prune as command
from prunec.ir.diagnostics import Exit, PrunecError, fail
from prunec.options.prune import PruneOptions
from prunec.options.recipe_fields import PATHS, VERBS, as_field, mistaken_options
from prunec.options.request import prune_options
from prunec.output.staging import Formats
from prunec.road.reading import TYPED, renamed
from prunec.verbs.pipeline import prune

__all__ = ["PrunecPrune", "package_config"]

PAPERS = (Formats.PLAN, Formats.RECIPE, Formats.REPORT, Formats.PAGE, Formats.CARD)
WRITTEN = {"hf": Formats.HF, "onnx": Formats.ONNX}
"""Formats that Olive has a kind of model for."""


class PrunecPrune(Pass):  # type: ignore[misc]
    """Removes whole neurons, heads and channels: the model that comes out is a smaller dense one.

    An HfModel becomes an HfModel, or with `format: onnx` an ONNXModel; an ONNXModel stays one. The
    plan, the report and the other papers of the run go along as additional files. Raises
    PrunecError for wrong options, and for targets that are not met.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, Any]:
        typed = {name: option for option, name in TYPED.items()}
        return {typed.get(name, name): _param(name, kind) for name, kind in VERBS["prune"].items()}

    def _run_for_config(self, model: Any, config: Any, output_model_path: str) -> Any:
        out = Path(output_model_path) / "prunec"
        given = {name: value for name, value in config.model_dump().items() if value is not None}
        options = _options(model, given, out)
        report = prune(options)
        if report.exit_code:
            raise fail(
                "P890",
                "the pruned model misses its target",
                where=str(out / Formats.PAGE),
                help="ask for one that can be met, or name more `groups`",
                exit_code=Exit.NOT_MET,
            )
        return _handler(model, options.formats[0], out)


def package_config() -> dict[str, Any]:
    """Olive's own package config with the pass added: a workflow can use both."""
    found: dict[str, Any] = OlivePackageConfig.load_default_config().model_dump(mode="json")
    everywhere = ("providers", "accelerators", "precisions")
    found["passes"][PrunecPrune.__name__.lower()] = {
        "module_path": f"{PrunecPrune.__module__}.{PrunecPrune.__name__}",
        **{f"supported_{what}": ["*"] for what in everywhere},
        "module_dependencies": ["prunec[torch]"],
    }
    return found


def _param(name: str, kind: type) -> Any:
    """An option of a recipe as Olive has it; what may be several is a text or a list."""
    told = {param.name: getattr(param, "help", None) for param in command.params}
    return PassConfigParam(
        type_=str | list[str] if kind is list else kind,
        category=ParamCategory.PATH if name in PATHS else ParamCategory.NONE,
        description=told[name],
    )


def _options(model: Any, given: Mapping[str, Any], out: Path) -> PruneOptions:
    """Settled options of the run."""
    if getattr(model, "adapter_path", None):
        raise fail(
            "P890",
            "a model with an adapter beside it cannot be pruned",
            where=str(model.adapter_path),
            help="merge the adapter first, with the pass MergeAdapterWeights",
        )
    named = renamed("prune", given)
    if problems := list(mistaken_options(named, "prune")):
        raise PrunecError(problems, Exit.USAGE)
    path = model.model_name_or_path if isinstance(model, HfModelHandler) else model.model_path
    trust = bool(getattr(getattr(model, "load_kwargs", None), "trust_remote_code", False))
    run = {"model": str(path), "out": out, "overwrite": True, "trust_remote_code": trust}
    options = prune_options({name: as_field(name, x) for name, x in named.items()} | run)
    if len(options.formats) != 1 or options.formats[0] not in WRITTEN:
        raise fail(
            "P890",
            f"a pass of Olive leaves one model, and not {' and '.join(options.formats)}",
            where="format",
            help=f"use one of {', '.join(WRITTEN)}",
            exit_code=Exit.USAGE,
        )
    return options


def _handler(model: Any, format_: str, out: Path) -> Any:
    """What Olive goes on with."""
    papers = [str(out / name) for name in PAPERS]
    if format_ == "hf":
        handler = inherit_hf_from_hf(model, str(out / Formats.HF))
        attributes = handler.model_attributes or {}
    else:
        path = out / Formats.ONNX
        handler = ONNXModelHandler(str(path.parent), onnx_file_name=path.name)
        attributes = {} if isinstance(model, HfModelHandler) else dict(model.model_attributes or {})
    earlier = attributes.get("additional_files") or []
    handler.model_attributes = {**attributes, "additional_files": [*earlier, *papers]}
    return handler
