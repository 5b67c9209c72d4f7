"""Model cards of sparse models: the README.md of OUT."""

from __future__ import annotations

from prunec import __version__
from prunec.output.staging import Formats
from prunec.reports.card import CAUTION, formats, front_matter, how, joined, model_name, sources
from prunec.reports.escape import markdown
from prunec.reports.sparse import SparsifyReport

__all__ = ["render_card"]


def render_card(report: SparsifyReport) -> str:
    """The card of a run, in Markdown."""
    name = markdown(model_name(report.model))
    choices = {"sparsity": report.sparsity, "method": report.method, "ratios": report.ratios}
    return joined(
        [
            front_matter(),
            f"# {name}, sparse",
            f"Made from {name} by prunec {__version__}: single weights were set to zero, in the "
            "layers that the table names. Shapes are those of the original, so that the files are "
            "as large as before and run as fast as before, except where a runtime or a compressor "
            f"makes use of zeros. `{Formats.MASKS}` says where they are.",
            f"{report.zeros:,} of {report.entries:,} entries of these layers are zero "
            f"({100 * report.zeros / report.entries:.2f} %), and "
            f"{100 * report.zeros / report.params:.2f} % of all {report.params:,} parameters.",
            how(choices, report.calibration),
            sources(report.sources),
            _layers(report),
            formats(report.formats, custom=False),
            CAUTION,
        ]
    )


def _layers(report: SparsifyReport) -> str:
    lines = [
        f"| {markdown(row.weight)} | {list(row.shape)} | {row.dim} | "
        f"{100 * row.zeros / row.entries:.2f} % |"
        for row in report.layers
    ]
    head = ["| weight | shape | summed over | zeros |", "|---|---|---:|---:|"]
    return "\n".join(["## Where zeros are", "", *head, *lines])
