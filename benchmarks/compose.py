"""Structure, zeros, low rank, INT8 and INT4, and their sensible stacks, side by side.

    python benchmarks/compose.py --work ~/compose
    python benchmarks/compose.py --models minilm --windows 2 --window 64 --samples 4 --work /tmp/c
    python benchmarks/compose.py --work ~/compose --write docs

SmolLM2 and MiniLM, dense and made smaller by the verbs of prunec, one after the other where a row
stacks them. Of each ONNX file: its bytes, raw and compressed (gzip), perplexity on WikiText-2 test
or for MiniLM the mean cosine of pooled outputs to the dense model's (`prunec eval`), the median
latency of one sequence in turns with the dense file in ONNX Runtime and, where `toolchain.py
openvino` has made an environment, in OpenVINO (`prunec bench`), and the peak memory of the process
that runs it. Of the way there: the seconds of processor of all its steps, and the peak memory of
the largest. Steps that rows share are done once.

Rows are kept in --work as they are measured, and the same command goes on after the last of them;
rows of other sources of prunec, or of other options, are measured again. Latencies come last: with
`--no-latency` they are left to a later call with the machine to itself. `--write docs` writes
docs/choosing.md, whose conclusions come from the rows. The texts wikitext2-valid.txt (calibration)
and wikitext2-test.txt are looked for in `../shared/data` beside the checkout, or in --data-dir.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import (
    Document,
    Figure,
    Finished,
    cache,
    data_file,
    figures,
    main,
    model,
    parser,
    prunec,
    say,
    source_hash,
    speaks,
)
from common import run as measured
from compose_page import write_page

STRUCTURED = ("prune", "--target", "params=75%", "--round-to", "64")
SPARSE_24 = ("sparsify", "--sparsity", "2:4", "--method", "sparsegpt")
SPARSE_50 = ("sparsify", "--sparsity", "50%", "--method", "wanda")
LOW_RANK = ("factorize", "--target", "params=75%", "--round-to", "16")
INT8 = ("quantize", "--quantize", "int8", "--activations", "float", "--block", "64")
INT4 = ("quantize", "--quantize", "int4")

STACKS: dict[str, tuple[tuple[str, ...], ...]] = {
    "dense": (),
    "structured 75 %": (STRUCTURED,),
    "2:4": (SPARSE_24,),
    "unstructured 50 %": (SPARSE_50,),
    "low rank 75 %": (LOW_RANK,),
    "INT8": (INT8,),
    "INT4": (INT4,),
    "structured 75 % + INT8": (STRUCTURED, INT8),
    "structured 75 % + INT4": (STRUCTURED, INT4),
    "structured 75 % + 2:4": (STRUCTURED, SPARSE_24),
    "structured 75 % + 2:4 + INT8": (STRUCTURED, SPARSE_24, INT8),
    "2:4 + INT8": (SPARSE_24, INT8),
    "2:4 + INT4": (SPARSE_24, INT4),
    "low rank 75 % + INT8": (LOW_RANK, INT8),
    "low rank 75 % + INT4": (LOW_RANK, INT4),
}
CALIBRATED = ("prune", "sparsify", "factorize")
SMALLER = {"structured 75 % + INT8": 5.0, "structured 75 % + INT4": 8.0}
"""How many times smaller than float32 dense SmolLM2 must become."""

LONGEST = 12
"""Characters of a text that a token is given: more than any stretch of it needs."""


@dataclass(frozen=True)
class Bench:
    """What all rows of a run share."""

    work: Path
    asked: Any
    calibration: Path
    text: Path


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--models", nargs="+", default=["smollm2", "minilm"], metavar="M", help="[both]")
    add("--stacks", nargs="+", default=list(STACKS), choices=list(STACKS), metavar="S")
    add("--work", type=Path, help="folder of rows and models [~/.cache/prunec/benchmarks/compose]")
    add("--data-dir", type=Path, help="folder of the texts [../shared/data]")
    add("--windows", type=int, default=20, metavar="N", help="[20]")
    add("--window", type=int, default=1024, metavar="N", help="tokens in each; MiniLM at most 512")
    add("--samples", type=int, default=64, metavar="N", help="windows of calibration [64]")
    add("--length", type=int, default=256, metavar="N", help="tokens in each of these [256]")
    add("--repeat", type=int, default=20, metavar="N", help="measurements of a latency [20]")
    add("--no-latency", action="store_true", help="leave latencies to a later call")
    add("--write", type=Path, metavar="DOCS", help="write choosing.md there from the rows")
    asked = options.parse_args(arguments)
    work = asked.work or cache() / "compose"
    work.mkdir(parents=True, exist_ok=True)
    text = data_file(asked.data_dir, "wikitext2-test.txt").read_text(encoding="utf-8")
    (work / "text.txt").write_text(text[: asked.windows * asked.window * LONGEST])
    calibration = data_file(asked.data_dir, "wikitext2-valid.txt")
    bench = Bench(work, asked, calibration, work / "text.txt")
    known = _known(work)
    asks = [(name, stack) for name in asked.models for stack in asked.stacks]
    passes = [_row] if asked.no_latency else [_row, _timed]
    for measure in passes:
        for name, stack in asks:
            key = _key(name, stack, asked)
            known[key] = measure(bench, name, stack, known.get(key, {}))
            _keep(work, known)
    rows = [known[_key(name, stack, asked)] for name, stack in asks]
    if asked.write:
        write_page(rows, asked.write / "choosing.md", asked.windows, asked.window)
    return {"rows": rows, "figures": figures(*_promised(rows))}


def _key(name: str, stack: str, asked: Any) -> str:
    shape = (asked.windows, asked.window, asked.samples, asked.length, asked.repeat)
    return json.dumps([source_hash(), name, STACKS[stack], shape])


def _known(work: Path) -> dict[str, Document]:
    path = work / "rows.json"
    found: dict[str, Document] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _keep(work: Path, rows: dict[str, Document]) -> None:
    partial = work / "rows.partial"
    partial.write_text(json.dumps(rows, indent=1))
    partial.replace(work / "rows.json")


def _row(bench: Bench, name: str, stack: str, known: Document) -> Document:
    """One row but for its latencies; a step that fails is told in it, and the others go on."""
    if known:
        return known
    say(f"{name}: {stack}")
    row: Document = {"model": name, "stack": stack}
    steps: list[Finished] = []
    try:
        file = _made(bench, name, STACKS[stack], steps)
        row |= _costs(steps) | _sizes(file) | _quality(bench, name, file)
    except SystemExit as error:
        row["error"] = str(error)[-1000:]
    say(str(row))
    return row


def _timed(bench: Bench, name: str, stack: str, known: Document) -> Document:
    """A row with its latencies."""
    if "error" in known or "onnxruntime_ms" in known:
        return known
    dense, file = (_made(bench, name, STACKS[kind], []) for kind in ("dense", stack))
    row = known | _speed(bench, dense, file)
    say(f"{name}: {stack}: {_speed_of(row)}")
    return row


def _made(
    bench: Bench, name: str, stack: tuple[tuple[str, ...], ...], steps: list[Finished]
) -> Path:
    """The ONNX file of a stack; measurements of the steps that led there go into `steps`."""
    source: Path = model(name)
    if not stack:
        stack = (("prune", "--plan", str(_whole_plan(bench.work, source))),)
    done = bench.work / source_hash() / Path(name).name / _shape(bench)
    for number, step in enumerate(stack):
        done = done / "_".join(step).replace("/", "-")[-100:]
        last = number == len(stack) - 1
        steps.append(_step(bench, step, source, done / "out", last=last))
        source = done / "out" / ("hf" if (done / "out" / "hf").is_dir() else "onnx/model.onnx")
    return done / "out" / "onnx" / "model.onnx"


def _shape(bench: Bench) -> str:
    return f"{bench.asked.samples}x{bench.asked.length}"


def _step(bench: Bench, step: tuple[str, ...], source: Path, out: Path, *, last: bool) -> Finished:
    """Do a step, or take what it took when it was done."""
    note = out.parent / "measured.json"
    if note.is_file() and out.is_dir():
        return Finished(**json.loads(note.read_text()))
    verb, *given = step
    call = [verb, source, "-o", out, "--overwrite", *given]
    if verb in CALIBRATED:
        call += [] if "--plan" in given else [
            "--calibration", bench.calibration, "--calibration-samples", str(bench.asked.samples),
            "--calibration-length", str(bench.asked.length),
        ]  # fmt: skip
        if "--plan" in given:
            call += ["--calibration", "none", "--restore", "none"]
        call += ["--format", "onnx" if verb == "factorize" else "hf,onnx"]
    if verb == "quantize":
        call += ["--calibration", "none"]
    out.parent.mkdir(parents=True, exist_ok=True)
    found = measured(prunec(*map(str, call))).expect(0)
    kept = vars(found) | {"stdout": "", "stderr": ""}
    note.write_text(json.dumps(kept))
    return found


def _whole_plan(work: Path, source: Path) -> Path:
    """A plan that keeps all of a model, named by its smallest tensor."""
    with (source / "model.safetensors").open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    shapes = {n: t["shape"] for n, t in header.items() if n != "__metadata__" and t["shape"]}
    name = min((n for n in shapes if n.endswith("weight")), key=lambda n: (shapes[n][0], n))
    path = work / f"whole-{source.name}.json"
    path.write_text(json.dumps({"parameters": {name: {"0": list(range(shapes[name][0]))}}}))
    return path


def _costs(steps: Sequence[Finished]) -> Document:
    """Seconds of processor of all steps, and the peak memory of the largest."""
    return {
        "compress_seconds": round(sum(step.cpu_seconds for step in steps), 1),
        "compress_peak": max(step.peak_rss for step in steps),
    }


def _sizes(file: Path) -> Document:
    """Bytes of the file and of the weights beside it, raw and compressed."""
    parts = [file, *sorted(file.parent.glob(f"{file.name}.data"))]
    with tempfile.TemporaryFile() as sink:
        with gzip.GzipFile(fileobj=sink, mode="wb", compresslevel=6, mtime=0) as packed:
            for part in parts:
                with part.open("rb") as stream:
                    while block := stream.read(1 << 22):
                        packed.write(block)
        return {"bytes": sum(p.stat().st_size for p in parts), "compressed": sink.tell()}


def _quality(bench: Bench, name: str, file: Path) -> Document:
    """Perplexity, or similarity where the model is no language model."""
    asked, dense = bench.asked, model(name)
    window = asked.window if speaks(dense) else min(asked.window, 512)
    call = [
        "eval", file, "--tokenizer", dense, "--data", bench.text, "--max-windows", asked.windows,
        "--window", window, "--json",
    ]  # fmt: skip
    against = [] if speaks(dense) else ["--against", dense]
    row = measured(prunec(*map(str, [*call, *against]))).expect(0).json()["rows"][-1]
    return {"perplexity": row["perplexity"], "similarity": row["similarity"]}


def _speed(bench: Bench, dense: Path, file: Path) -> Document:
    """In each runtime the median milliseconds, how many times faster than dense in turns, and the
    peak memory of a process that runs the file alone."""
    found: Document = {}
    for runtime, command in _runtimes().items():
        call = (*command, "bench", "--runtime", runtime, "--length", "128", "--json", "--repeat")
        repeat = str(bench.asked.repeat)
        told = measured((*call, repeat, *map(str, dict.fromkeys((dense, file)))))
        alone = measured((*call, "1", str(file)))
        if told.exit_code or alone.exit_code:
            found[f"{runtime}_error"] = (told.stderr + alone.stderr)[-300:]
            continue
        medians = [row["median"] for row in told.json()["rows"]]
        found[f"{runtime}_ms"] = round(1000 * medians[-1], 2)
        found[f"{runtime}_speedup"] = round(medians[0] / medians[-1], 3)
        found[f"{runtime}_peak"] = alone.peak_rss
    return found


def _speed_of(row: Document) -> Document:
    return {name: value for name, value in row.items() if name.startswith(tuple(_runtimes()))}


def _runtimes() -> dict[str, tuple[str, ...]]:
    """How to call prunec in each runtime's environment."""
    found = {"onnxruntime": prunec()}
    chosen = os.environ.get("PRUNEC_INTEGRATIONS")
    home = Path(chosen) if chosen else Path.home() / ".cache" / "prunec" / "integrations"
    other = home / "openvino" / "bin" / "prunec"
    return found | ({"openvino": (str(other),)} if other.is_file() else {})


def _promised(rows: Sequence[Document]) -> list[Figure]:
    size = {(row["model"], row["stack"]): row.get("bytes") for row in rows}
    dense = size.get(("smollm2", "dense"))
    failed = sum("error" in row or "onnxruntime_error" in row for row in rows)
    return [
        Figure("stacks that do not run in ONNX Runtime", failed, most=0),
        *_smaller(size, dense),
    ]


def _smaller(size: Mapping[tuple[str, str], int | None], dense: int | None) -> list[Figure]:
    return [
        Figure(
            f"smollm2, {stack}: times smaller than dense float32",
            round(dense / size["smollm2", stack], 2),
            least=least,
        )
        for stack, least in SMALLER.items()
        if dense and size.get(("smollm2", stack))
    ]


if __name__ == "__main__":
    main(run)
