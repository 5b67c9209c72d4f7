"""Check an ONNX file that was written: by onnx, and by opening it with ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime

from prunec.ir.diagnostics import PrunecError, fail

__all__ = ["check_written", "open_session"]

FATAL_ONLY = 4
"""ONNX Runtime's log severity: what fails is raised, and told in our words."""

OPENED = 500_000_000
"""Bytes of weights up to which a written file is opened: ONNX Runtime reads them all."""


def check_written(path: Path, original: ir.Model, write: Callable[[], None]) -> None:
    """Write, and raise P220 when the file is not valid though the original was."""
    try:
        write()
        size = sum(f.stat().st_size for f in path.parent.glob(f"{path.name}*"))
        if _valid(original):
            onnx.checker.check_model(str(path))
        if size <= OPENED:
            _opens(path, original)
    except PrunecError:
        raise
    except OSError:
        raise
    except Exception as error:  # onnx and ONNX Runtime raise types of their own
        raise invalid(path, error) from error


def _opens(path: Path, original: ir.Model) -> None:
    """What ONNX Runtime did not open before, such as operators of others, it need not open now."""
    try:
        open_session(path)
    except Exception:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            before = Path(folder) / "original.onnx"
            ir.save(original.clone(), before, external_data=f"{before.name}.data")
            try:
                open_session(before)
            except Exception:
                return
        raise


def _valid(original: ir.Model) -> bool:
    """Whether onnx's checker has nothing to say of the graph that was read."""
    model = original.clone()
    for graph in model.graphs():
        for value in list(graph.initializers.values()):
            graph.inputs.append(value) if value not in graph.inputs else None
            graph.initializers.pop(str(value.name))
    try:
        onnx.checker.check_model(ir.to_proto(model))
    except Exception:
        return False
    return True


def open_session(path: Path, *, optimised: bool = False) -> onnxruntime.InferenceSession:
    """A file as written, or as ONNX Runtime makes it faster."""
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    )
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def invalid(path: Path, error: Exception) -> PrunecError:
    said = " ".join(str(error).split())[:500]
    return fail(
        "P220",
        f"the ONNX file that was written is not valid: {said}",
        where=str(path),
        help="leave onnx out of --format, and report the model",
    )
