"""Time to type a traced program, and how it grows when the model has twice as many layers.

SmolLM2-135M as its configuration says (30 layers) and with `num_hidden_layers` doubled, both on
the meta device. Timed in turns: `infer` (the axes of every value) and `couple` (which infers, and
then finds groups, roles and names: all that typing means). Promised: `couple` takes at most 0.3 s
for the 30 layers, and at most 2.2 times as long for 60. Tracing by torch.export is timed once
each and not part of it.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common import Document, Figure, figures, main, model, parser, say

if TYPE_CHECKING:
    from prunec.ir.graph import Graph

MOST_SECONDS, MOST_RATIO = 0.3, 2.2
LAYERS, KINDS = "num_hidden_layers", "layer_types"


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2", help="a name or model folder [smollm2]")
    options.add_argument("--repeat", type=int, default=15, metavar="N", help="of each [15]")
    asked = options.parse_args(arguments)

    from prunec.ir.dialects.aten import ATEN
    from prunec.ir.infer import infer
    from prunec.passes.couple import couple

    config = json.loads((model(asked.model) / "config.json").read_text(encoding="utf-8"))
    rows: list[Document] = []
    graphs: list[Graph] = []
    for scale in (1, 2):
        graph, seconds = _traced(_stretched(config, scale))
        layers = config[LAYERS] * scale
        say(f"{layers} layers: {len(graph.ops)} operations, traced in {seconds:.1f} s")
        rows.append({"layers": layers, "operations": len(graph.ops), "trace_seconds": seconds})
        graphs.append(graph)
    works: dict[str, Callable[..., object]] = {"infer": infer, "couple": couple}
    for name, work in works.items():
        times = _in_turns([partial(work, graph, ATEN) for graph in graphs], asked.repeat)
        for row, taken in zip(rows, times, strict=True):
            row |= {
                f"{name}_seconds": statistics.median(taken),
                f"{name}_fastest": min(taken),
                f"{name}_slowest": max(taken),
            }
    one, two = rows
    ratios = {n: two[f"{n}_seconds"] / one[f"{n}_seconds"] for n in ("infer", "couple")}
    return {
        "model": asked.model,
        "repeat": asked.repeat,
        "rows": rows,
        "ratio": ratios,
        "figures": figures(
            Figure(f"seconds to type {one['layers']} layers", one["couple_seconds"],
                   most=MOST_SECONDS),
            Figure("times as long for twice the layers", ratios["couple"], most=MOST_RATIO),
        ),
    }  # fmt: skip


def _stretched(config: Document, scale: int) -> Document:
    """The configuration with that many times the layers."""
    found = {**config, LAYERS: config[LAYERS] * scale}
    if found.get(KINDS):
        found[KINDS] = found[KINDS] * scale
    return found


def _traced(config: Document) -> tuple[Graph, float]:
    from prunec.frontends import hf
    from prunec.frontends.source import resolve
    from prunec.frontends.torch_hf import trace_hf

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        module = hf.build_meta(hf.load_config(resolve(str(path), need_weights=False)))
        start = time.perf_counter()
        return trace_hf(module).graph, round(time.perf_counter() - start, 3)


def _in_turns(works: Sequence[Callable[[], object]], repeat: int) -> list[list[float]]:
    """Seconds of each piece of work, A B A B ..., after one round that does not count."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(repeat + 1):
        for taken, work in zip(times, works, strict=True):
            gc.collect()
            start = time.perf_counter()
            work()
            if turn:
                taken.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main(run)
