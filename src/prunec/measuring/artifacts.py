"""What can be run at a path: a model in one format, or each format in a folder of prunec's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prunec.frontends.source import TOKENIZERS, resolve
from prunec.ir.diagnostics import Exit, fail
from prunec.measuring.runners import (
    Runner,
    fixed_length,
    open_hf,
    open_onnx,
    open_openvino,
    open_torchscript,
    takes_cache,
)
from prunec.output.staging import Formats

__all__ = ["Artifact", "find_artifacts", "for_runtime", "for_step"]

TORCHSCRIPT_SUFFIXES = {".pt", ".ts", ".torchscript"}


@dataclass(frozen=True)
class Artifact:
    """A model in one format. `name` is what the user called it, with the format when there are
    several; `runtime` is what runs it unless another is asked for."""

    name: str
    kind: str
    location: str
    runtime: str
    trust_remote_code: bool = False

    def open(
        self, threads: int | None = None, runtime: str | None = None, past: int | None = None
    ) -> Runner:
        """What runs the model; with `past`, one decoding step after so many tokens."""
        if past is not None and self.kind == "hf":
            return self._open_step(threads, runtime or self.runtime, past)
        path = Path(self.location)
        openers: dict[tuple[str, str], Callable[[], Runner]] = {
            ("onnx", "onnxruntime"): lambda: open_onnx(path, threads),
            ("onnx", "openvino"): lambda: open_openvino(path, threads),
            ("torchscript", "torch"): lambda: open_torchscript(path, threads),
            ("hf", "torch"): lambda: open_hf(
                self.location, threads, trust_remote_code=self.trust_remote_code
            ),
        }
        return openers[self.kind, runtime or self.runtime]()

    def _open_step(self, threads: int | None, runtime: str, past: int) -> Runner:
        from prunec.measuring.decoding import open_exported_step, open_hf_step

        trust = self.trust_remote_code
        if runtime == "torch":
            return open_hf_step(self.location, past, threads, trust_remote_code=trust)
        opener = open_onnx if runtime == "onnxruntime" else open_openvino
        return open_exported_step(self.location, past, opener, threads, trust_remote_code=trust)

    def takes_step(self) -> bool:
        """Whether it can be given a cache: what was written without one reads whole sequences."""
        if self.kind == "onnx":
            return takes_cache(Path(self.location))
        return self.kind == "hf"

    def folder(self) -> Path:
        """The folder of the model's files; PrunecError when there is no such model."""
        if self.kind != "hf":
            return Path(self.location).parent
        return resolve(self.location, trust_remote_code=self.trust_remote_code).folder

    def length(self) -> int | None:
        """How many tokens the model reads, where it reads so many and no others."""
        return fixed_length(Path(self.location)) if self.kind == "onnx" else None

    def tokenizer(self) -> Path | None:
        """The folder with the tokenizer that belongs to it, if it is where prunec puts it."""
        path = Path(self.location)
        beside = [path.parent, path.parent.parent / Formats.HF, path.parent.parent]
        folders = [self.folder()] if self.kind == "hf" else beside
        return next((f for f in folders if any((f / n).is_file() for n in TOKENIZERS)), None)


def find_artifacts(model: str, *, trust_remote_code: bool = False) -> tuple[Artifact, ...]:
    """The models at MODEL: one, or one for each format of a folder that prunec wrote."""
    path = Path(model).expanduser()
    if path.is_file() and path.suffix == ".onnx":
        return (Artifact(model, "onnx", str(path), "onnxruntime"),)
    if path.is_file() and path.suffix in TORCHSCRIPT_SUFFIXES:
        return (Artifact(model, "torchscript", str(path), "torch"),)
    if path.is_dir() and not (path / "config.json").is_file():
        found = tuple(_formats(model, path, trust_remote_code))
        if found:
            return found
    return (
        Artifact(model, "hf", str(path) if path.exists() else model, "torch", trust_remote_code),
    )


def for_step(found: tuple[Artifact, ...], model: str, runtime: str | None) -> Artifact:
    """The artifact whose decoding step is measured: a file that takes a cache, or a checkpoint,
    which ONNX runtimes run as it is traced. Raises P868 when there is neither."""
    able = tuple(artifact for artifact in found if artifact.takes_step())
    files = tuple(artifact for artifact in able if artifact.kind == "onnx")
    checkpoints = tuple(artifact for artifact in able if artifact.kind == "hf")
    if checkpoints and (runtime == "torch" or not files):
        return checkpoints[0]
    if files:
        return for_runtime(files, model, runtime)
    raise fail(
        "P868",
        f"{model} takes no decoding step: no cache of keys and values is among its inputs",
        where="--phase",
        help="measure the checkpoint that it was made from, or a file exported with its cache",
        exit_code=Exit.USAGE,
    )


def for_runtime(found: tuple[Artifact, ...], model: str, runtime: str | None) -> Artifact:
    """The artifact to measure: the one that `runtime` can run; without one, ONNX goes first."""
    preferred = {None: ("onnx", "hf", "torchscript"), "torch": ("hf", "torchscript")}
    kinds = preferred.get(runtime, ("onnx",))
    for kind in kinds:
        for artifact in found:
            if artifact.kind == kind:
                return artifact
    here = ", ".join(sorted({artifact.kind for artifact in found}))
    raise fail(
        "P864",
        f"{runtime} runs {' and '.join(kinds)}, and {model} is {here}",
        where="--runtime",
        help="write it with `prunec prune --format onnx,hf`, or choose another runtime",
        exit_code=Exit.USAGE,
    )


def _formats(model: str, folder: Path, trust: bool) -> list[Artifact]:
    layout = (
        ("hf", Formats.HF, "torch"),
        ("onnx", Formats.ONNX, "onnxruntime"),
        ("torchscript", Formats.TORCHSCRIPT, "torch"),
    )
    return [
        Artifact(f"{model.rstrip('/')}/{kind}", kind, str(folder / place), runtime, trust)
        for kind, place, runtime in layout
        if (folder / place).exists()
    ]
