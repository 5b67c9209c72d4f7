"""Model cards: the README.md of OUT, dense and pruned side by side.

Everything that comes from the model or the user is escaped: a name cannot become markup.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from prunec import __version__
from prunec.cli.show import measured_on, perplexity
from prunec.frontends.mixture import parse_mixture
from prunec.reports.data import PruneReport, Sizes, SourceRow, WrittenFormat
from prunec.reports.escape import markdown, printable

__all__ = [
    "CAUTION",
    "SHOWN",
    "formats",
    "front_matter",
    "how",
    "joined",
    "model_name",
    "render_card",
    "sources",
    "told_calibration",
]

CAUTION = (
    "The licence and the limits of the original model apply. Measure the quality on your own task "
    "before you use it: pruning changes what a model knows."
)

SHOWN: tuple[tuple[str, str], ...] = (
    ("parameters", "params"),
    ("parameters in blocks", "blocks"),
    ("bytes of weights", "bytes"),
    ("FLOPs", "flops"),
    ("activation bytes", "activation_bytes"),
    ("KV-cache bytes", "kv_cache_bytes"),
)

LOADING = {
    "hf": "`AutoModel.from_pretrained('hf')` (or the class for its task)",
    "onnx": "ONNX Runtime, OpenVINO and others",
    "torchscript": "`torch.jit.load`, in Python or C++",
}


def render_card(report: PruneReport) -> str:
    """The card of a run, in Markdown."""
    name = model_name(report.model)
    sections = [
        front_matter(),
        f"# {markdown(name)}, pruned",
        f"Made from {markdown(name)} by prunec "
        f"{__version__}: whole indices of whole dimensions were removed, so that the model is "
        "dense and needs no sparse kernels.",
        _costs(report.dense, report.pruned),
        how(_choices(report), report.calibration),
        sources(report.sources),
        _groups(report),
        _interface(report),
        formats(report.formats, custom=report.layout == "per-layer"),
        CAUTION,
    ]
    return joined(sections)


def joined(sections: Iterable[str]) -> str:
    """Those sections that have something to say."""
    return "\n\n".join(section for section in sections if section) + "\n"


def model_name(model: str) -> str:
    """What to call a model in public: a hub id as it is, of a path the last part only."""
    path = Path(model)
    return (path.resolve().name or model) if os.path.exists(path) or path.is_absolute() else model


def told_calibration(calibration: str) -> str:
    """The sources by name: folders of whoever made the model are nobody's business."""
    if calibration in ("none", "auto"):
        return calibration
    return ", ".join(part.name for part in parse_mixture(calibration))


def front_matter() -> str:
    return "---\ntags:\n- pruned\n- prunec\n---"


def _costs(dense: Sizes, pruned: Sizes) -> str:
    rows = [
        (name, getattr(dense, field), getattr(pruned, field))
        for name, field in SHOWN
        if getattr(dense, field)
    ]
    lines = [f"| {n} | {a:,} | {b:,} | {100 * b / a:.1f} % |" for n, a, b in rows]
    head = ["| | dense | pruned | left |", "|---|---:|---:|---:|"]
    note = f"\n\nAt batch {dense.batch} and {dense.length} tokens." if dense.flops else ""
    return "\n".join([*head, *lines]) + note


def _choices(report: PruneReport) -> dict[str, str]:
    return {
        "target": ", ".join(target.text for target in report.targets) or "a given plan",
        "method": report.method,
        "restoration": report.restore,
        "layout": report.layout,
    }


def how(choices: Mapping[str, str], calibration: str) -> str:
    """What was asked for; of calibration data the names alone."""
    facts = {**choices, "calibration": told_calibration(calibration)}
    lines = [f"| {key} | {markdown(value)} |" for key, value in facts.items()]
    return "\n".join(["| how | |", "|---|---|", *lines])


def sources(rows: Sequence[SourceRow]) -> str:
    """What the run did to each source of calibration data, by name alone."""
    if not rows:
        return ""
    lines = [
        f"| {markdown(s.name)} | {100 * s.weight:.3g} % | {_effect(s)} | {measured_on(s)} |"
        for s in rows
    ]
    if rows[0].metric == "cross_entropy":
        what = "Mean negative log-likelihood of the next token, in nats (perplexity in brackets)."
        head = ["| source | weight | dense | pruned | measured on |", "|---|---:|---:|---:|---|"]
    else:
        what = "Norm of the change of the outputs over the norm of the dense outputs."
        head = ["| source | weight | change | measured on |", "|---|---:|---:|---|"]
    return "\n".join(["## What it does to each source", "", what, "", *head, *lines])


def _effect(source: SourceRow) -> str:
    if source.metric != "cross_entropy":
        return f"{source.pruned:.3g}"
    sides = (source.dense, source.pruned)
    return " | ".join(f"{loss:.3f} ({perplexity(loss):.4g})" for loss in sides)


def _groups(report: PruneReport) -> str:
    lines = [
        f"| {markdown(g.name)} | {markdown(g.role)} | {g.size} | {g.kept} |"
        for g in report.groups
        if g.kept is not None and 0 < g.kept < g.size
    ]
    whole = [f"- {markdown(name)}" for name in report.removed]
    if not lines and not whole:
        return ""
    head = ["| group | role | dense | pruned |", "|---|---|---:|---:|"] if lines else []
    between = [""] if lines and whole else []
    return "\n".join(["## What was removed", "", *whole, *between, *head, *lines])


def _interface(report: PruneReport) -> str:
    """Whoever feeds the model must know what it takes now."""
    lines = [
        f"| {row.kind} | {markdown(row.name)} | {markdown(str(list(row.dense)))} |"
        f" {'removed' if row.pruned is None else markdown(str(list(row.pruned)))} |"
        for row in report.interface
    ]
    if not lines:
        return ""
    head = ["| | name | dense | pruned |", "|---|---|---|---|"]
    return "\n".join(["## Changed inputs and outputs", "", *head, *lines])


def formats(written: Sequence[WrittenFormat], *, custom: bool) -> str:
    """Where each format lies and what loads it; `custom` code comes along with a checkpoint."""
    if not written:
        return ""
    lines = [
        f"- `{printable(f.path).replace('`', '')}`: {LOADING.get(f.name, markdown(f.name))}"
        for f in written
    ]
    note = (
        "\n\nThe Hugging Face format holds its own code, since widths differ by layer: pass "
        "`trust_remote_code=True`."
        if custom and any(f.name == "hf" for f in written)
        else ""
    )
    return "\n".join(["## Formats", "", *lines]) + note
