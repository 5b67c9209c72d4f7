"""How long `prunec --help` takes, and what `import prunec` loads.

The command is run several times; promised are a median below 0.3 s, and neither torch nor
transformers. A busy machine shows in wall time and not in the time of the processor.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence

from common import Document, Figure, figures, main, parser, prunec
from common import run as measured

MOST_SECONDS = 0.3
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "numpy")
UNWANTED = ("torch", "transformers")


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    options.add_argument("--repeat", type=int, default=20, metavar="N", help="[20]")
    asked = options.parse_args(arguments)
    measured(prunec("--help")).expect(0)  # compiles what was not compiled yet
    turns = [measured(prunec("--help"), interval=0.001).expect(0) for _ in range(asked.repeat)]
    wall, cpu = [t.seconds for t in turns], [t.cpu_seconds for t in turns]
    code = (
        f"import json, prunec, sys; print(json.dumps({{m: m in sys.modules for m in {HEAVY!r}}}))"
    )
    loaded: dict[str, bool] = measured([sys.executable, "-c", code]).expect(0).json()
    return {
        "seconds_of_help": {"median": statistics.median(wall), "min": min(wall), "max": max(wall)},
        "processor_seconds": statistics.median(cpu),
        "loaded_by_import": loaded,
        "figures": figures(
            Figure("median seconds of prunec --help", statistics.median(wall), most=MOST_SECONDS),
            Figure("frameworks that import prunec loads", sum(loaded[n] for n in UNWANTED), most=0),
        ),
    }


if __name__ == "__main__":
    main(run)
