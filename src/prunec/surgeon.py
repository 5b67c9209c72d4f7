"""Graphs of onnx-graphsurgeon in and out, for export scripts that hold those.

    import onnx_graphsurgeon as gs
    from prunec.surgeon import prune_graph

    small = prune_graph(gs.import_onnx(onnx.load("model.onnx")), target="params=70%",
                        method="magnitude")

Needs the extra `prunec[graphsurgeon]`. The graph goes through memory as a whole, which is how
graphsurgeon holds it anyway; for large files use the path of the file instead.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunec.api import load

if TYPE_CHECKING:
    import onnx_graphsurgeon

__all__ = ["prune_graph"]

SIDE = "weights.bin"


def prune_graph(
    graph: onnx_graphsurgeon.Graph, target: str | Sequence[str] = (), **options: Any
) -> onnx_graphsurgeon.Graph:
    """A smaller graph; the one given stays as it is.

    `target` and `options` are those of `prunec.Model.prune`. Raises PrunecError for wrong options,
    for targets that cannot be met, and for graphs that are not valid.
    """
    import onnx
    import onnx_graphsurgeon as gs

    with tempfile.TemporaryDirectory(prefix="prunec-") as scratch:
        path = Path(scratch) / "model.onnx"
        onnx.save(
            gs.export_onnx(graph.copy()), path,
            save_as_external_data=True, location=SIDE, size_threshold=1024,
        )  # fmt: skip
        pruned = load(path).prune(target, formats="onnx", **options)
        out = Path(scratch) / "out"
        pruned.save(out)
        return gs.import_onnx(onnx.load(out / "onnx/model.onnx"))
