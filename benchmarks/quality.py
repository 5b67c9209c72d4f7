"""Every preset at 90 to 50 % of the blocks of three models: what the smaller model can still do.

Each row is one `prunec prune MODEL --target blocks=P% --method PRESET --layout per-layer`,
calibrated on 64 windows of 512 tokens of WikiText-2 valid, and what came of it: parameters and
FLOPs left, wall time and its parts, peak memory, and the quality of what was written, by
`prunec eval` on three texts:

- `wikitext`: WikiText-2 test, of the kind that was calibrated on;
- `docs`: English prose from the documentation that Python carries, which was not;
- `code`: source code of Python's standard library, which is far from both.

Language models (SmolLM2-135M, Gemma-3-270M) have their perplexity on the first 10 windows of 1,024
tokens of each; an encoder (MiniLM-L6) the mean cosine between its pooled outputs and those of the
dense model, on the first 80 windows of 128 tokens, which are nearer to sentences.

Promised: `auto` is the best or within 1 % of it on the first text and within 3 % on the second,
at the same number of parameters (within 0.3 %); and bounds of its own on SmolLM2.

All of it takes many hours. Rows that are done are kept in a file of JSON lines beside the page, the
most telling ones first (80 and 60 %, SmolLM2), and are not measured again (--fresh does) while the
sources of prunec and the options are the same (--any-sources: whatever the sources were). A run
that fails is a row with its error, and is tried again. `--write docs` measures nothing: it renders
quality.md and quality.svg from the rows that there are, the last one measured of each, and says
which are missing.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

from common import (
    ROOT,
    Document,
    Figure,
    Finished,
    command_line,
    data_file,
    figures,
    main,
    model,
    parser,
    prunec,
    say,
)
from common import run as measured
from quality_rows import DENSE, FIRST, Kept, Row, Setting, order

from prunec.frontends.prose import prose
from prunec.passes.methods import PRESETS

MODELS = ("smollm2", "gemma3", "minilm")
SHARES = (90, 80, 70, 60, 50)
OURS = "auto"
TEXTS = ("wikitext", "docs", "code")
CALIBRATION, TEST = "wikitext2-valid.txt", "wikitext2-test.txt"
CODE = ("shlex", "textwrap", "heapq", "statistics")
"""Modules of the standard library that are plain code in one file, for every Python."""
WITHIN = {"wikitext": 1.01, "docs": 1.03}
"""How far `auto` may be from the best of the others."""
SPREAD = 0.003
"""How far the numbers of parameters may lie apart that are compared."""
FAR = 1.43
PERPLEXITY = {80: 28.5, 60: 42.0}
TIMEOUT = 4 * 3600
TOLD = 600
"""Characters of what a failed command said that are kept."""


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--models", nargs="+", default=MODELS, metavar="MODEL", help="names or model folders")
    add("--shares", nargs="+", type=int, default=SHARES, metavar="P", help="percent of blocks")
    add("--methods", nargs="+", default=list(PRESETS), metavar="NAME", help="[all presets]")
    add("--samples", type=int, default=64, metavar="N", help="windows to calibrate on [64]")
    add("--length", type=int, default=512, metavar="N", help="tokens in each [512]")
    add("--windows", type=int, default=10, metavar="N", help="of each text [10]")
    add("--window", type=int, default=1024, metavar="N", help="tokens in each [1024]")
    add("--layout", default="per-layer", help="uniform or per-layer [per-layer]")
    add("--data-dir", type=Path, help="folder of the WikiText-2 files [../shared/data]")
    add("--state", type=Path, help="file of rows that are done [docs/quality.jsonl]")
    add("--work", type=Path, help="folder for what is written meanwhile [the system's]")
    add("--fresh", action="store_true", help="measure every row again")
    add("--any-sources", action="store_true", help="take rows of other versions of prunec too")
    add("--write", type=Path, metavar="DIR", help="render what there is into DIR; measure nothing")
    asked = options.parse_args(arguments)

    setting = Setting(**{f.name: getattr(asked, f.name) for f in fields(Setting)})
    path = asked.state or ROOT / "docs" / "quality.jsonl"
    todo = order(asked.models, asked.shares, asked.methods)
    if asked.write is not None:
        return _written(asked.write, Kept(path, setting, any_sources=True), todo)
    given = [data_file(asked.data_dir, name) for name in (CALIBRATION, TEST)]
    kept = Kept(path, setting, asked.any_sources, asked.fresh)
    work = Path(tempfile.mkdtemp(prefix="prunec-quality-", dir=asked.work))
    try:
        rows = _rows(Bench(setting, work, *given), kept, todo)
    finally:
        shutil.rmtree(work)
    promised = all(
        getattr(asked, name) == options.get_default(name) for name in vars(setting)
    )  # with other settings there are numbers and no bounds on them
    found = judged(rows, promised)
    return {"state": str(path), "setting": asdict(setting), "rows": rows, "figures": found}


def _rows(bench: Bench, kept: Kept, todo: Sequence[Row]) -> list[Document]:
    dense: dict[str, Document] = {}
    rows = []
    for number, row in enumerate(todo, 1):
        if row.model not in dense:
            base = Row(row.model, 100, DENSE)
            dense[row.model] = kept.get(base) or kept.put(base, bench.row(base, {}))
            rows.append(dense[row.model])
            say(f"{base.label}: {_told(rows[-1])}")
        rows.append(kept.get(row) or kept.put(row, bench.row(row, dense[row.model])))
        say(f"{number}/{len(todo)} {row.label}: {_told(rows[-1])}")
    return rows


def _told(row: Document) -> str:
    if "error" in row:
        return f"FAILED: {row['error']}"
    values = ", ".join(f"{text} {_number(value):,.3f}" for text, value in row["quality"].items())
    return f"{row['params']:,} parameters, {row['metric']}: {values}"


def _number(value: float | None) -> float:
    """What overflows is null in JSON."""
    return math.inf if value is None else value


# -- one row ----------------------------------------------------------------------------------


class Failed(Exception):
    """A command did not do what it should; the message is what is kept of it."""


@dataclass(frozen=True)
class Bench:
    """Measures rows, in a folder that is thrown away."""

    setting: Setting
    work: Path
    calibration: Path
    test: Path

    @cached_property
    def texts(self) -> Mapping[str, Path]:
        """The files to evaluate on."""
        folder = self.work / "texts"
        folder.mkdir()
        for name, text in (("docs", prose()), ("code", _code())):
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
        own = {name: folder / f"{name}.txt" for name in ("docs", "code")}
        return {"wikitext": self.test} | own

    def row(self, row: Row, dense: Document) -> Document:
        """What came of it; what went wrong is a row too."""
        say(f"{row.label} ...")
        folder = Path(tempfile.mkdtemp(dir=self.work))
        try:
            if "error" in dense:
                return {"error": "the dense model could not be measured"}
            if row.method == DENSE:
                return self._dense(model(row.model))
            return self._pruned(row, folder / "out", dense)
        except Exception as error:  # one row must not end a run of hours
            told = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
            return {"error": told}
        finally:
            shutil.rmtree(folder)

    def _dense(self, folder: Path) -> Document:
        sizes = _done(measured(prunec("inspect", folder, "--json")), 0).json()["sizes"]
        quality = self._evaluated(folder, None)
        metric = "perplexity"
        if all(value is None for value in quality.values()):  # it predicts no tokens
            metric, quality = "similarity", dict.fromkeys(quality, 1.0)
        return {**_sizes(sizes), "metric": metric, "quality": quality}

    def _pruned(self, row: Row, out: Path, dense: Document) -> Document:
        given = model(row.model)
        command, load = self._command(given, row, out), os.getloadavg()[0]
        finished = _done(measured(command, timeout=TIMEOUT), 0, 3)
        if not out.is_dir():
            raise Failed(_said(finished))
        report = finished.json()
        against = given if dense["metric"] == "similarity" else None
        quality = self._evaluated(out / "hf", against)
        ratio = {
            text: None if value is None else value / dense["quality"][text]
            for text, value in quality.items()
        }
        return {
            **_sizes(report["pruned"]),
            "metric": dense["metric"],
            "quality": quality,
            "ratio": ratio,
            "met": finished.exit_code == 0,
            "seconds": round(finished.seconds, 1),
            "cpu_seconds": round(finished.cpu_seconds, 1),
            "load_before": round(load, 2),
            "parts": report["seconds"],
            "peak_rss": finished.peak_rss,
            "peak_anonymous": finished.peak_anonymous,
            "kept": _kept(report),
            "command": command_line(self._command(given.name, row, "out")),
        }

    def _command(self, given: Path | str, row: Row, out: Path | str) -> tuple[str, ...]:
        calibration = self.calibration if isinstance(given, Path) else self.calibration.name
        return prunec(
            *("prune", given, "-o", out, "--target", f"blocks={row.share}%"),
            *("--method", row.method, "--layout", self.setting.layout, "--format", "hf"),
            *("--calibration", calibration, "--calibration-samples", str(self.setting.samples)),
            *("--calibration-length", str(self.setting.length), "--json"),
        )

    def _evaluated(self, folder: Path, against: Path | None) -> dict[str, float | None]:
        """Perplexity, or similarity to another model, by text."""
        found = {}
        how = self.setting.evaluated(encoder=against is not None)
        metric = "similarity" if against is not None else "perplexity"
        versus = () if against is None else ("--against", against)
        for name, text in self.texts.items():
            finished = _done(measured(prunec("eval", folder, "--data", text, *versus, *how)), 0)
            (row,) = [row for row in finished.json()["rows"] if not row["dense"]]
            found[name] = row[metric]
        return found


def _code() -> str:
    found = []
    for name in CODE:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        found.append(Path(spec.origin).read_text(encoding="utf-8"))
    return "\n\n".join(found)


def _done(finished: Finished, *exit_codes: int) -> Finished:
    if finished.exit_code not in exit_codes:
        raise Failed(_said(finished))
    return finished


def _said(finished: Finished) -> str:
    return f"exit code {finished.exit_code}: {finished.stderr.strip()[-TOLD:]}"


def _sizes(sizes: Document) -> Document:
    return {name: sizes[name] for name in ("params", "blocks", "flops", "length")}


def _kept(report: Document) -> Document:
    """Share of the indices that stay, by role: of all groups, and the least and most of one."""
    found: dict[str, list[tuple[int, int]]] = {}
    for group in report["groups"]:
        found.setdefault(group["role"], []).append((group["kept"], group["size"]))
    return {
        role: {
            "share": round(sum(k for k, _ in all_) / sum(n for _, n in all_), 4),
            "least": round(min(k / n for k, n in all_), 4),
            "most": round(max(k / n for k, n in all_), 4),
        }
        for role, all_ in found.items()
        if any(k < n for k, n in all_)
    }


# -- what is promised -------------------------------------------------------------------------


def judged(rows: Iterable[Document], promised: bool) -> list[Document]:
    """The figures; bounds on `auto` alone hold only where the settings are those promised."""
    rows = list(rows)
    found = [Figure("rows that failed", sum("error" in row for row in rows), most=0)]
    cells: dict[tuple[str, int], dict[str, Document]] = {}
    for row in rows:
        if row["method"] != DENSE:
            cells.setdefault((row["model"], row["share"]), {})[row["method"]] = row
    for (name, share), by_method in cells.items():
        label = f"{Path(name).name} {share} %"
        found += _compared(label, by_method)
        if promised and name == "smollm2" and OURS in by_method:
            found += _bounds(label, share, by_method[OURS])
    return figures(*found)


def _compared(label: str, by_method: Mapping[str, Document]) -> list[Figure]:
    """`auto` against the best of the others, and how far apart the counts are."""
    others = {m: r for m, r in by_method.items() if m != OURS and "error" not in r}
    if OURS not in by_method or not others:
        return []
    ours = by_method[OURS]
    found = []
    for text, most in WITHIN.items():
        costs = {m: _cost(r, text) for m, r in others.items()}
        best = min(costs, key=lambda m: costs[m])
        own = math.nan if "error" in ours else _cost(ours, text)
        found.append(Figure(f"{label}, {text}: {OURS} over {best}", own / costs[best], most=most))
    counts = [r["params"] for r in by_method.values() if "error" not in r]
    found.append(Figure(f"{label}: spread of counts", max(counts) / min(counts) - 1, most=SPREAD))
    return found


def _cost(row: Document, text: str) -> float:
    """Lower is better: the perplexity, or one over the similarity."""
    value = _number(row["quality"][text])
    if row["metric"] == "perplexity":
        return value
    return 1 / value if value > 0 else math.inf


def _bounds(label: str, share: int, ours: Document) -> list[Figure]:
    quality, ratio = ours.get("quality", {}), ours.get("ratio", {})
    found = []
    if share in PERPLEXITY:
        value = quality.get("wikitext")
        found.append(Figure(f"{label}: {OURS}, perplexity", value, most=PERPLEXITY[share]))
    if share == FIRST[0]:
        for text in TEXTS[1:]:
            what = f"{label}, {text}: {OURS} over dense"
            found.append(Figure(what, ratio.get(text), most=FAR))
    return found


def _written(folder: Path, kept: Kept, todo: Sequence[Row]) -> Document:
    """The page and the plot, from the rows that there are."""
    from quality_page import Page

    models = dict.fromkeys(row.model for row in todo)
    wanted = [*(Row(name, 100, DENSE) for name in models), *todo]
    rows = {row: kept.latest(row) for row in wanted}
    found = [row for row in rows.values() if row is not None]
    if not found:
        raise SystemExit(f"{kept.path} has no row of these settings: there is nothing to write")
    missing = [row.label for row, known in rows.items() if known is None]
    page = Page(
        asdict(kept.setting),
        tuple(found),
        tuple(missing),
        shares=tuple(sorted({row.share for row in todo}, reverse=True)),
        methods=tuple(dict.fromkeys(row.method for row in todo)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quality.md").write_text(page.text(), encoding="utf-8")
    plotted = page.plot(folder / "quality.svg")
    return {"rows": len(found), "missing": missing, "plotted": plotted}


if __name__ == "__main__":
    main(run)
