"""SmolLM2 and MiniLM dense, pruned, quantised, and pruned and quantised: bytes and quality.

`prunec prune` to a share of the parameters, then `prunec quantize` of the ONNX files, which uses
the tools of ONNX Runtime: INT8 with activations scaled as they come (`dynamic`), INT8 and 4-bit
weights in blocks with activations as they are (`float`). Bytes are those of the ONNX files.
Quality is the perplexity on the first windows of WikiText-2 test, or for MiniLM the mean cosine of
its pooled outputs to those of the dense model, both by `prunec eval`.

The text `wikitext2-test.txt` is not part of the project; it is looked for in `../shared/data`
beside the checkout, or in --data-dir.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from common import Document, Figure, data_file, figures, main, model, parser, prunec, say
from common import run as measured

KINDS: dict[str, tuple[str, ...]] = {
    "int8, dynamic": ("--quantize", "int8"),
    "int8, float": ("--quantize", "int8", "--activations", "float"),
    "int4": ("--quantize", "int4"),
}
SMALLER = {"smollm2": 3.0, "minilm": 3.0}
"""How many times smaller INT8 makes a file, at least: tables and products hold nearly all."""

LONGEST = 12
"""Characters of the text that a token is given: more than any stretch of it needs."""


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--models", nargs="+", default=list(SMALLER), metavar="M", help="[smollm2 minilm]")
    add("--target", default="params=85%", help="[params=85%%]")
    add("--pruned", type=Path, metavar="FOLDER", help="take what prune wrote; of one model")
    add("--data-dir", type=Path, help="folder of the text [../shared/data]")
    add("--windows", type=int, default=4, metavar="N", help="[4]")
    add("--window", type=int, default=256, metavar="N", help="tokens in each [256]")
    add("--prune", default="", metavar="OPTIONS", help="more of prunec prune, as one text")
    asked = options.parse_args(arguments)
    if asked.pruned and len(asked.models) != 1:
        options.error("--pruned is of one model: name it with --models")
    whole = data_file(asked.data_dir, "wikitext2-test.txt").read_text(encoding="utf-8")
    shape = ("--max-windows", asked.windows, "--window", asked.window)
    rows: list[Document] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "text.txt").write_text(whole[: asked.windows * asked.window * LONGEST])
        evaluated = ("--data", work / "text.txt", *shape, "--json")
        for name in asked.models:
            pruned = asked.pruned or work / f"{Path(name).name}-pruned"
            if not asked.pruned:
                say(f"{name}: pruning")
                how = ("--target", asked.target, *asked.prune.split(), "--format", "onnx")
                measured(prunec("prune", model(name), "-o", pruned, *how)).expect(0)
            rows += _rows(name, pruned / "onnx" / "model.onnx", work / Path(name).name, evaluated)
    return {"rows": rows, "figures": figures(*_promised(rows))}


def _rows(name: str, pruned: Path, work: Path, evaluated: tuple[object, ...]) -> list[Document]:
    dense = model(name)
    evaluated = ("--tokenizer", dense, *evaluated)
    quality = _evaluated(dense, evaluated)
    if quality["perplexity"] is None:
        evaluated = ("--against", dense, *evaluated)
        quality["similarity"] = 1.0
    found = []
    for side, source in (("dense", dense), ("pruned", pruned)):
        for number, (kind, quantisation) in enumerate(KINDS.items()):
            out = work / f"{side}-{number}"
            call = prunec("quantize", source, "-o", out, *quantisation, "--calibration", "none")
            told = measured((*call, "--json")).expect(0).json()
            if not number:
                quality = quality if side == "dense" else _evaluated(source, evaluated)
                found.append(_row(name, side, "float32", told["dense_bytes"], quality))
            quality = _evaluated(out / "onnx" / "model.onnx", evaluated)
            found.append(_row(name, side, kind, told["formats"][0]["bytes"], quality))
    return found


def _evaluated(source: Path, options: tuple[object, ...]) -> Document:
    """What eval tells of a model; the dense one, where it is measured too, comes first."""
    call = prunec("eval", source, *map(str, options))
    row: Document = measured(call).expect(0).json()["rows"][-1]
    return row


def _row(name: str, side: str, kind: str, size: int, quality: Document) -> Document:
    found = {
        "model": name,
        "side": side,
        "kind": kind,
        "bytes": size,
        "perplexity": quality["perplexity"],
        "similarity": quality["similarity"],
    }
    say(str(found))
    return found


def _promised(rows: Sequence[Document]) -> list[Figure]:
    size = {(row["model"], row["side"], row["kind"]): row["bytes"] for row in rows}
    return [
        Figure(
            f"{name}: times that INT8 makes the pruned file smaller",
            round(size[name, "pruned", "float32"] / size[name, "pruned", "int8, float"], 2),
            least=least,
        )
        for name, least in SMALLER.items()
        if (name, "pruned", "float32") in size
    ]


if __name__ == "__main__":
    main(run)
