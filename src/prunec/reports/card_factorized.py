"""Model cards of models in factors: the README.md of OUT."""

from __future__ import annotations

from prunec import __version__
from prunec.reports.card import CAUTION, formats, front_matter, how, joined, model_name, sources
from prunec.reports.escape import markdown
from prunec.reports.factorize import FactorizeReport

__all__ = ["render_card"]


def render_card(report: FactorizeReport) -> str:
    """The README.md of OUT."""
    name = markdown(model_name(report.model))
    choices = {"target": report.target, "method": report.method, "ranks": report.ranks}
    lines = [
        f"| {markdown(row.weight)} | {row.outputs} x {row.inputs} | {row.rank} |"
        f" {'-' if row.error is None else f'{row.error:.3f}'} |"
        for row in report.layers
    ]
    head = ["| weight | shape | rank | relative error |", "|---|---|---:|---:|"]
    return joined(
        [
            front_matter(),
            f"# {name}, in factors of low rank",
            f"Made from {name} by prunec {__version__}: {len(report.layers)} matrices are products"
            f" of two now. {report.params:,} of {report.dense:,} parameters remain"
            f" ({report.params / report.dense:.1%}).",
            how(choices, report.calibration),
            sources(report.sources),
            "\n".join(["## Ranks", "", *head, *lines]),
            formats(report.formats, custom=False),
            CAUTION,
        ]
    )
