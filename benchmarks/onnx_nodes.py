"""The node tests of the package onnx, read, typed and written unchanged by prunec.

    python benchmarks/onnx_nodes.py
    python benchmarks/onnx_nodes.py --only test_conv --write docs

Each of the models (`onnx.backend.test`, kind node: one operator each, and what its definition as a
function expands to) goes through the frontend, the inference and the backend with nothing pruned.
What is written must pass the checker where the original does, and give the same bits as the
original in onnx's reference evaluator, on the inputs of the test. A model that the evaluator does
not run as it came is counted apart: there the written graph must equal the one that was read. So
must it where an operator draws random numbers.

Promised: all of them. `--write FOLDER` writes onnx-operators.md, the table of ONNX's operators that
have a rule and of those that pin what they touch.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import Document, Figure, figures, main, parser, say
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator

from prunec.backends.onnx_edit import Original, edit, save
from prunec.frontends.onnx import read_onnx
from prunec.ir.diagnostics import PrunecError
from prunec.ir.dialects.onnx import ONNX
from prunec.passes.couple import couple
from prunec.passes.rewrite import rewrite

RANDOM = {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike",
          "RandomUniform", "RandomUniformLike"}  # fmt: skip

CHECKED, SAME_BITS, SAME_GRAPH = "valid", "same bits", "same graph"


@dataclass(frozen=True)
class Row:
    """What became of one model; `problem` is empty when all is well."""

    name: str
    how: str
    problem: str = ""


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    options.add_argument("--only", default="", metavar="PREFIX", help="tests that begin so")
    options.add_argument("--write", type=Path, metavar="FOLDER", help="where the table goes")
    asked = options.parse_args(arguments)
    cases = [case for case in load_model_tests(kind="node") if case.name.startswith(asked.only)]
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
        rows = [_row(case, Path(folder)) for case in cases]
    bad = [row for row in rows if row.problem]
    for row in bad:
        say(f"{row.name}: {row.problem}")
    if asked.write:
        (asked.write / "onnx-operators.md").write_text(_page(cases), encoding="utf-8")
    return {
        "models": len(rows),
        "compared_by": dict(Counter(row.how for row in rows if not row.problem)),
        "problems": {row.name: row.problem for row in bad},
        "operators": {kind: len(names) for kind, names in _operators().items()},
        "figures": figures(Figure("node models that do not come back as they were", len(bad),
                                  most=0)),
    }  # fmt: skip


def _row(case: TestCase, folder: Path) -> Row:
    model = case.model
    assert model is not None, "node tests hold their models"
    path, out = folder / "model.onnx", folder / "written.onnx"
    onnx.save(model, path)
    try:
        _through(path, out)
    except PrunecError as error:
        return Row(case.name, "", f"refused: {error.diagnostics[0].message}")
    written = onnx.load(out)
    if _valid(model) and not _valid(written):
        return Row(case.name, CHECKED, "what was written does not pass the checker")
    return _compared(case, model, written)


def _through(path: Path, out: Path) -> None:
    program = read_onnx(path)
    coupling = couple(program.graph, ONNX)
    original = Original(program.model, coupling.graph, program.nodes, program.tensors)
    save(edit(original, rewrite(coupling, {}), program.weights, set()), program.model, out)


def _valid(model: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        return False
    return True


def _compared(case: TestCase, model: onnx.ModelProto, written: onnx.ModelProto) -> Row:
    drawn = any(node.op_type in RANDOM for node in model.graph.node)
    if not drawn:
        for inputs, _ in case.data_sets or ():
            wanted = _evaluated(model, inputs)
            if wanted is None:
                break
            found = _evaluated(written, inputs)
            if found is None or not _same_bits(wanted, found):
                return Row(case.name, SAME_BITS, "the reference evaluator gives other numbers")
        else:
            return Row(case.name, SAME_BITS)
    same = _nodes(model) == _nodes(written)
    return Row(case.name, SAME_GRAPH, "" if same else "the graph that was written is another one")


def _nodes(model: onnx.ModelProto) -> bytes:
    """All nodes; it makes no difference whether one says that it has no domain."""
    graph = onnx.GraphProto(node=model.graph.node)
    pending = list(graph.node)
    while pending:
        node = pending.pop()
        if not node.domain:
            node.ClearField("domain")
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                pending += body.node
    return graph.SerializeToString(deterministic=True)


def _evaluated(model: onnx.ModelProto, inputs: Sequence[Any]) -> list[Any] | None:
    """What the reference evaluator gives; None where it does not run the model."""
    names = [value.name for value in model.graph.input]
    try:
        found: list[Any] = ReferenceEvaluator(model).run(
            None, dict(zip(names, inputs, strict=False))
        )
    except Exception:  # whatever it lacks
        return None
    return found


def _same_bits(one: Any, other: Any) -> bool:
    """Of arrays, and of lists of them."""
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same_bits, one, other))
    if one is None or other is None:
        return one is other
    a, b = np.asarray(one), np.asarray(other)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool((a == b).all()) if a.dtype.hasobject else a.tobytes() == b.tobytes()


# The table


def _operators() -> dict[str, list[str]]:
    """ONNX's operators that are not deprecated, by whether they have a rule."""
    found: dict[str, list[str]] = {"rule": [], "pins": []}
    names = {s.name for s in onnx.defs.get_all_schemas() if not s.domain and not s.deprecated}
    for name in sorted(names):
        key = f"onnx.{name}"
        known = key in ONNX.rules or key in ONNX.signatures
        found["rule" if known else "pins"].append(name)
    return found


def _page(cases: Sequence[TestCase]) -> str:
    models = [case.model for case in cases if case.model is not None]
    used = Counter(n for m in models for n in {node.op_type for node in m.graph.node})
    parts = [
        "# Operators of ONNX\n",
        "Written by `python benchmarks/onnx_nodes.py --write docs`. An operator with a rule says"
        " which dimensions\nare the same axis; one without pins every dimension that it touches,"
        " and `prunec inspect` says so.\nAll are read and written as they are; the number is how"
        f" many of the {len(models)} node tests of onnx {onnx.__version__}\nhold the operator.\n",
    ]
    titles = {"rule": "With a rule", "pins": "Pins what it touches"}
    for kind, names in _operators().items():
        parts.append(f"## {titles[kind]} ({len(names)})\n")
        parts.append("| operator | tests |\n|---|---|")
        parts += [f"| {name} | {used[name]} |" for name in names]
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    main(run)
