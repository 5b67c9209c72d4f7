"""Wall time and peak memory of `prunec inspect` on the configuration of a 7B Llama, no weights.

Writes a config.json with the sizes of Llama 2 7B (32 layers, hidden 4096, FFN 11008, 32 heads,
vocabulary 32000) and runs the command as a process of its own. Promised: under 30 s, and a peak
resident set (as the kernel counts it, file-backed pages included) under 1.5 GB.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common import Document, Figure, command_line, figures, main, parser, prunec, say
from common import run as measured

MOST_SECONDS, MOST_GB = 30, 1.5

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    options.add_argument("--repeat", type=int, default=3, metavar="N", help="runs [3]")
    options.add_argument("--layers", type=int, default=32, metavar="N", help="of the model [32]")
    asked = options.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory(prefix="prunec-inspect-") as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps({**CONFIG, "num_hidden_layers": asked.layers}))
        command = prunec("inspect", path, "--json")
        for _ in range(asked.repeat):
            finished = measured(command).expect(0)
            report = finished.json()
            rows.append(
                {
                    "seconds": round(finished.seconds, 2),
                    "cpu_seconds": round(finished.cpu_seconds, 2),
                    "peak_gb": finished.peak_rss / 1e9,
                    "peak_anonymous_gb": (finished.peak_anonymous or 0) / 1e9,
                    "params": report["sizes"]["params"],
                    "groups": len(report["groups"]),
                    "parts": report["seconds"],
                }
            )
            say(f"{rows[-1]['seconds']} s, peak {rows[-1]['peak_gb']:.2f} GB")
    return {
        "command": command_line(prunec("inspect", "config.json", "--json")),
        "rows": rows,
        "median_seconds": statistics.median(row["seconds"] for row in rows),
        "figures": figures(
            Figure("slowest run, seconds", max(r["seconds"] for r in rows), most=MOST_SECONDS),
            Figure("highest peak, GB", max(r["peak_gb"] for r in rows), most=MOST_GB),
        ),
    }


if __name__ == "__main__":
    main(run)
