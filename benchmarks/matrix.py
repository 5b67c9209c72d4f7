"""The three real models at blocks = 90, 75 and 60 %, in all formats and both layouts.

Each row is one `prunec prune MODEL --target blocks=P% --format hf,onnx,torchscript --verify` and
what came of it:

- the parameters left in blocks, counted by name in each written file itself (everything but
  embeddings, output head and pooler), against the target: within 0.5 %;
- each format loaded in a process of its own without prunec, by stock classes (custom code only
  where the layout is per-layer), ONNX Runtime and torch.jit alone, and run on random tokens at two
  batch sizes and two lengths with padding: finite, of the right shape, and as the reloaded
  checkpoint says, to 1e-5 (TorchScript) and 1e-4 (ONNX Runtime) of the largest output. Pruned hard
  without repair, a model may amplify rounding beyond that: `rounding` is what the reloaded
  checkpoint differs by from itself in float64, and twice as much, once for each side, is allowed;
- the differences that --verify reports (law 1; every format against the executor).

Layouts: `uniform`; `per-layer`; and `per-layer` with `--allocate global`, where widths do differ
by layer. MiniLM's uniform layout can only hold fewer neurons: that is expected and told by prunec.
At the end `--target params=60%` on Gemma 3 must be refused with exit code 3 and its reason.

Rows are kept in a file of JSON lines and not measured again (--fresh does), as long as the
sources of prunec and the options are the same. Needs 6 GB of disk for a while.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import (
    Document,
    Figure,
    Finished,
    cache,
    command_line,
    figures,
    main,
    model,
    parser,
    prunec,
    say,
    source_hash,
)
from common import run as measured
from runtimes import checkpoint

Array = npt.NDArray[Any]

MODELS = ("smollm2", "gemma3", "minilm")
SHARES = (90, 75, 60)
VARIANTS = {
    "uniform": ("--layout", "uniform"),
    "per-layer": ("--layout", "per-layer"),
    "per-layer-global": ("--layout", "per-layer", "--allocate", "global"),
}
FORMATS = {"hf": "hf", "onnx": "onnx/model.onnx", "torchscript": "torchscript/model.pt"}
OUTER = ("embed_tokens.", "word_embeddings.", "position_embeddings.", "token_type_embeddings.",
         "wte.", "wpe.", "lm_head.", "pooler.", "cls.")  # fmt: skip
"""What lies outside the blocks: tables that tokens or positions look up, heads after the last."""
WITHIN = 0.005
BATCHES, LENGTHS, PADDED = (1, 3), (7, 33), 3
DIFFERENCE = "difference_to_hf"
ALLOWED = {"torchscript": 1e-5, "onnx": 1e-4}
REFUSED = "params=60%"
NOT_MET = 3


@dataclass(frozen=True)
class Row:
    """What is to be done; together with the sources it says whether a kept result still holds."""

    model: str
    share: int
    variant: str
    method: str
    calibration: str
    samples: int
    within: float

    def command(self, out: Path) -> tuple[str, ...]:
        calibrated = () if self.calibration == "none" else ("--calibration-samples", self.samples)
        return prunec(
            *("prune", str(model(self.model)), "-o", out, "--target", f"blocks={self.share}%"),
            *("--method", self.method, "--calibration", self.calibration, *map(str, calibrated)),
            *(*VARIANTS[self.variant], "--format", ",".join(FORMATS), "--verify", "--json"),
        )


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--models", nargs="+", default=MODELS, metavar="MODEL", help="names or model folders")
    add("--shares", nargs="+", type=int, default=SHARES, metavar="P", help="percent of blocks")
    add("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, help="[all]")
    add("--method", default="magnitude", help="magnitude (default), random or wanda")
    add("--calibration", default="none", help="none (default), self or a text; wanda needs one")
    add("--samples", type=int, default=16, help="windows of calibration text, if any [16]")
    add("--within", type=float, default=WITHIN, help=f"of the target, as a share [{WITHIN}]")
    add("--refuse", default="gemma3", metavar="MODEL", help="must refuse params=60%% [gemma3]")
    add("--state", type=Path, help="file of rows that are done [matrix.jsonl in the cache]")
    add("--work", type=Path, help="folder for what is written meanwhile [the system's]")
    add("--keep", action="store_true", help="leave the written models in the work folder")
    add("--fresh", action="store_true", help="measure every row again")
    asked = options.parse_args(arguments)

    state = _State(asked.state or cache() / "matrix.jsonl", asked.fresh)
    fixed = (asked.method, asked.calibration, asked.samples, asked.within)
    todo = [
        Row(name, share, variant, *fixed)
        for name in asked.models
        for share in asked.shares
        for variant in asked.variants
    ]
    rows = []
    work = Path(tempfile.mkdtemp(prefix="prunec-matrix-", dir=asked.work))
    try:
        for number, row in enumerate(todo, 1):
            label = f"{number}/{len(todo)} {row.model} {row.share} % {row.variant}"
            rows.append(state.get(row) or state.put(row, _measure(row, work, label, asked.keep)))
            _tell(label, rows[-1])
        refused = _refusal(asked.refuse, work) if asked.refuse in asked.models else None
    finally:
        if not asked.keep:
            shutil.rmtree(work)
    summary = _summary(rows, refused, asked.within)
    return {"state": str(state.path), "rows": rows, "refused": refused, **summary}


def _tell(label: str, row: Document) -> None:
    problems = row["problems"]
    off = max((abs(f["off"]) for f in row["formats"].values()), default=math.nan)
    say(f"{label}: {'; '.join(problems) or f'ok, {off:.3%} from the target'}")


# -- one row ----------------------------------------------------------------------------------


def _measure(row: Row, work: Path, label: str, keep: bool) -> Document:
    folder = Path(tempfile.mkdtemp(dir=work))
    try:
        return _pruned(row, folder, label)
    except Exception as error:  # one row must not end a run of an hour
        return {"formats": {}, "problems": [f"{type(error).__name__}: {error}"]}
    finally:
        if not keep:
            shutil.rmtree(folder)


def _pruned(row: Row, folder: Path, label: str) -> Document:
    out = folder / "out"
    say(f"{label}: pruning")
    finished = measured(row.command(out))
    found: Document = {
        "command": command_line(finished.command),
        "exit_code": finished.exit_code,
        "seconds": round(finished.seconds, 1),
        "cpu_seconds": round(finished.cpu_seconds, 1),
        "peak_gb": round(finished.peak_rss / 1e9, 2),
        "formats": {},
    }
    if not out.is_dir():
        return found | {"problems": [_said(finished)]}
    report = finished.json()
    dense = checkpoint(model(row.model))
    target = row.share / 100 * _blocks(dense)
    found |= {
        "blocks": {"dense": _blocks(dense), "target": target},
        "checks": {c["name"]: c["difference"] for c in report["checks"]},
        "roles": _roles(report),
        "parts": report["seconds"],
        "bytes": {f["name"]: f["bytes"] for f in report["formats"]},
    }
    say(f"{label}: loading and running what was written")
    found["formats"] = _formats(out, folder, list(dense), target, row)
    problems = [f"exit code {finished.exit_code}"] if finished.exit_code else []
    problems += [
        f"{c['name']}: difference {c['difference']}" for c in report["checks"] if not c["passed"]
    ]
    problems += [p for f in found["formats"].values() for p in f.pop("problems")]
    return found | {"problems": problems}


def _said(finished: Finished) -> str:
    return f"exit code {finished.exit_code}: {finished.stderr.strip()[-600:]}"


def _roles(report: Document) -> Document:
    """For every role that lost something: the range of what its groups kept, of what size."""
    found: Document = {}
    for group in report["groups"]:
        found.setdefault(group["role"], []).append((group["kept"], group["size"]))
    return {
        role: {"kept": [min(k for k, _ in all_), max(k for k, _ in all_)],
               "of": max(n for _, n in all_), "groups": len(all_)}
        for role, all_ in found.items()
        if any(k is not None and k < n for k, n in all_)
    }  # fmt: skip


def _blocks(shapes: dict[str, list[int]]) -> int:
    inside = [name for name in shapes if not any(outer in f"{name}." for outer in OUTER)]
    return sum(math.prod(shapes[name]) for name in inside)


# -- the formats ------------------------------------------------------------------------------


def _formats(out: Path, folder: Path, dense: list[str], target: float, row: Row) -> Document:
    names, inputs = folder / "names.json", folder / "inputs.npz"
    names.write_text(json.dumps(dense), encoding="utf-8")
    cases = _cases(out / "hf" / "config.json")
    stored = {f"{case}/{name}": x for case, feeds in cases.items() for name, x in feeds.items()}
    np.savez(inputs, **stored)  # type: ignore[arg-type]
    found: Document = {}
    for kind, place in FORMATS.items():
        outputs = folder / f"{kind}.npz"
        finished = measured(
            (sys.executable, "-P", Path(__file__).parent / "runtimes.py", kind, out / place,
             names, inputs, outputs)
        )  # fmt: skip
        if finished.exit_code:
            found[kind] = {"off": math.nan, "problems": [f"{kind}: {_said(finished)}"]}
            continue
        found[kind] = _judged(kind, finished.json(), folder, target, cases, row)
    return found


def _judged(
    kind: str, told: Document, folder: Path, target: float, cases: dict[str, Any], row: Row
) -> Document:
    left = _blocks(told["parameters"])
    off = (left - target) / target
    problems = []
    if abs(off) > row.within:
        problems.append(f"{kind}: {left} parameters left of a target of {target:.0f}")
    if told["missing"]:
        problems.append(f"{kind}: lacks {', '.join(told['missing'][:3])}")
    if told["imported"]:
        problems.append(f"{kind}: needed {', '.join(told['imported'])}")
    if kind == "hf" and ("own code" in told["loaded_by"]) != ("per-layer" in row.variant):
        problems.append(f"hf: loaded by {told['loaded_by']}")
    result = {
        "loaded_by": told["loaded_by"],
        "left": left,
        "off": off,
        "load_seconds": told["load_seconds"],
        "ran": list(cases),
    }
    difference, wrong = _compared(kind, "hf", folder, cases)
    rounding, _ = _compared("hf", "hf.exact", folder, cases)
    if kind == "hf":
        result["rounding"] = rounding
    else:
        result[DIFFERENCE] = difference
        if not difference <= max(ALLOWED[kind], 2 * rounding):
            wrong.append(f"{kind}: differs from the reloaded checkpoint by {difference}")
    return result | {"problems": problems + wrong}


def _cases(config: Path) -> dict[str, dict[str, Array]]:
    """Inputs at every batch size and length; the last row of a batch is padded at its end."""
    vocabulary = json.loads(config.read_text(encoding="utf-8"))["vocab_size"]
    rng = np.random.default_rng(0)
    found = {}
    for batch in BATCHES:
        for length in LENGTHS:
            mask = np.ones((batch, length), np.int64)
            if batch > 1:
                mask[-1, -PADDED:] = 0
            tokens = rng.integers(0, vocabulary, (batch, length))
            found[f"{batch}x{length}"] = {"input_ids": tokens, "attention_mask": mask}
    return found


def _compared(
    kind: str, other: str, folder: Path, cases: dict[str, Any]
) -> tuple[float, list[str]]:
    """The largest relative difference of two sets of outputs, and what is wrong with the first."""
    paths = [folder / f"{name}.npz" for name in (kind, other)]
    if missing := [path.stem for path in paths if not path.is_file()]:
        return math.nan, [f"{kind}: there are no outputs of {missing[0]} to compare"]
    worst, wrong = 0.0, []
    with np.load(paths[0]) as found, np.load(paths[1]) as wanted:
        if set(found.files) != set(wanted.files):
            return math.inf, [f"{kind}: has outputs {found.files}, not {wanted.files}"]
        for key in found.files:
            real = cases[key.split("/")[0]]["attention_mask"].astype(bool)
            a, b = found[key], wanted[key]
            if a.shape != b.shape or a.shape[0] != real.shape[0]:
                wrong.append(f"{kind}: output {key} has shape {a.shape}, not {b.shape}")
                continue
            if a.ndim == 3:  # what a model says at padding has no meaning
                a, b = a[real], b[real]
            if not np.isfinite(a).all():
                wrong.append(f"{kind}: output {key} is not finite")
            worst = max(worst, float(np.abs(a - b).max() / (np.abs(b).max() or 1)))
    return worst, wrong


# -- the refusal, the summary -----------------------------------------------------------------


def _refusal(name: str, work: Path) -> Document:
    """What prunec says to a target beyond reach; nothing may be written."""
    out = work / "refused"
    finished = measured(
        prunec(
            *("prune", model(name), "-o", out, "--target", REFUSED, "--method", "magnitude"),
            *("--calibration", "none", "--format", "hf", "--json"),
        )
    )
    try:
        reasons = finished.json()["error"]["diagnostics"]
    except (ValueError, KeyError):
        reasons = []
    refused = finished.exit_code == NOT_MET and bool(reasons) and not out.exists()
    say(f"{name} {REFUSED}: exit code {finished.exit_code}, {reasons or finished.stderr}")
    return {
        "command": command_line(finished.command),
        "exit_code": finished.exit_code,
        "reasons": reasons,
        "refused": refused and "Traceback" not in finished.stderr,
    }


def _summary(rows: list[Document], refused: Document | None, within: float) -> Document:
    formats = [f for row in rows for f in row["formats"].values()]
    checks: dict[str, list[float]] = {}
    for row in rows:
        for name, difference in row.get("checks", {}).items():
            # what is not finite is null in JSON
            checks.setdefault(name, []).append(math.inf if difference is None else difference)
    allowed = {"law 1": 1e-5, "hf": 0.0, "torchscript": 1e-5, "onnx": 1e-4}
    offs = [abs(f["off"]) for f in formats]
    found = [
        Figure("rows with a problem", sum(bool(row["problems"]) for row in rows), most=0),
        Figure("furthest from the target", _largest(offs), most=within),
        *(
            Figure(f"--verify, {name}", _largest(values), most=allowed[name])
            for name, values in checks.items()
        ),
    ]
    if refused is not None:
        found.append(Figure(f"{REFUSED} refused with its reason", int(refused["refused"]), least=1))
    told = {
        "rounding": _largest([f["rounding"] for f in formats if "rounding" in f]),
        "torchscript, onnx": _largest([f[DIFFERENCE] for f in formats if DIFFERENCE in f]),
    }
    return {"largest_on_random_tokens": told, "figures": figures(*found)}


def _largest(values: list[float]) -> float | None:
    """The largest, or not-a-number if there is one among them."""
    if not values:
        return None
    return math.nan if any(map(math.isnan, values)) else max(values)


class _State:
    """Rows that are done, one JSON document a line, with what they are of."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self.path, self.sources = path, source_hash()
        self.done: dict[str, Document] = {}
        if fresh or not path.is_file():
            return
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                kept = json.loads(line)
                self.done[json.dumps(kept["of"], sort_keys=True)] = kept["row"]
            except (ValueError, KeyError):
                continue  # cut off when a run was killed

    def _of(self, row: Row) -> Document:
        return {**asdict(row), "sources": self.sources}

    def get(self, row: Row) -> Document | None:
        """A row that was measured before; one that failed is tried again."""
        found = self.done.get(json.dumps(self._of(row), sort_keys=True))
        return None if found is None or found["problems"] else found

    def put(self, row: Row, found: Document) -> Document:
        told = {**{k: v for k, v in asdict(row).items() if k not in ("samples", "within")}, **found}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"of": self._of(row), "row": told}) + "\n")
        return told


if __name__ == "__main__":
    main(run)
