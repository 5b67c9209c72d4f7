"""Collect `*.ir` files: input program, passes to run and expected output, all in one file.

    # RUN: print locations=false
    # a comment on the case
    graph g() { ... }
    # ---
    what the last pass is expected to give

A file holds one case or more; each starts at its `# RUN:` line. The passes of a case are
separated by a comma and a space and run in order; options follow the name. A pass takes a graph
and its options and gives a graph for the next one, or the text to compare; a graph that comes
last is printed. A PrunecError counts as its rendered diagnostics. Lines in its messages count
from the `# RUN:` line, so that they do not move when another case does.

`pytest tests/ir --update-ir` rewrites the expectations.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunec.ir.axes import Selection
from prunec.ir.diagnostics import PrunecError
from prunec.ir.dialects.aten import ATEN
from prunec.ir.graph import Graph, TensorType
from prunec.ir.text import parse, print_graph
from prunec.ir.verify import verify
from prunec.passes.couple import couple
from prunec.passes.coupling import Group, Pinned
from prunec.passes.dce import dce
from prunec.passes.rewrite import rewrite

Options = Mapping[str, str]

RUN = "# RUN:"
SEPARATOR = "# ---"


def run_print(graph: Graph, options: Options) -> str:
    return print_graph(graph, locations=options.get("locations") != "false")


def run_verify(graph: Graph, options: Options) -> str:
    return "\n".join(d.render() for d in verify(graph)) or "valid"


def run_infer(graph: Graph, options: Options) -> Graph:
    """The graph with its axes, which must be well formed."""
    found = couple(graph, ATEN).graph
    assert verify(found) == []
    return found


def run_couple(graph: Graph, options: Options) -> str:
    """What leaves together and what stays, one line each."""
    found = couple(graph, ATEN)
    lines = [
        *map(describe_group, found.groups),
        *map(describe_pin, found.pinned),
        *(f"no rule: {name}, {count} times" for name, count in found.without_rule.items()),
    ]
    return "\n".join(lines)


def describe_group(group: Group) -> str:
    text = f"{group.name}: {group.size} at {', '.join(map(str, group.places))}"
    text += f" under {group.parent}" if group.parent else ""
    return text + (" normed" if group.normed else "")


def describe_pin(pin: Pinned) -> str:
    where = f"   [{pin.where}]" if pin.where else ""
    places = ", ".join(map(str, pin.places))
    return f"pinned {pin.axis}: {pin.size} at {places}: {pin.reason}{where}"


def run_slice(graph: Graph, options: Options) -> Graph:
    """Keep `group=0,2`, or with another choice for each index of the parent `group=0,1|1,2`."""
    coupling = couple(untyped(graph), ATEN)
    found = rewrite(coupling, {n: selection(coupling.by_name[n], t) for n, t in options.items()})
    assert verify(found.graph) == []
    return found.graph


def selection(group: Group, text: str) -> Selection:
    rows = [[int(index) for index in row.split(",")] for row in text.split("|")]
    return Selection(np.array(rows), group.parent) if len(rows) > 1 else Selection(np.array(*rows))


def run_untype(graph: Graph, options: Options) -> Graph:
    return untyped(graph)


def untyped(graph: Graph) -> Graph:
    """The graph as a frontend gives it: without axes."""

    def bare(type_: TensorType) -> TensorType:
        return replace(type_, axes=())

    return replace(
        graph,
        inputs=tuple(replace(v, type=bare(v.type)) for v in graph.inputs),
        parameters={n: replace(p, type=bare(p.type)) for n, p in graph.parameters.items()},
        ops=tuple(replace(op, types=tuple(map(bare, op.types))) for op in graph.ops),
    )


PASSES: dict[str, Callable[[Graph, Options], Graph | str]] = {
    "print": run_print,
    "verify": run_verify,
    "infer": run_infer,
    "couple": run_couple,
    "slice": run_slice,
    "untype": run_untype,
    "dce": lambda graph, options: dce(graph),
}


@dataclass(frozen=True)
class Case:
    """One `# RUN:` line with its input and expectation; `line` counts from 1."""

    line: int
    passes: str
    input: str
    expected: str

    def actual(self) -> str:
        try:
            return self.run().rstrip()
        except PrunecError as error:
            return str(error).rstrip()

    def run(self) -> str:
        # one line break stands for the `# RUN:` line
        result: Graph | str = parse("\n" + self.input, where="input")
        for command in self.passes.split(", "):
            name, *words = command.split()
            assert isinstance(result, Graph), f"the pass before `{name}` gave text"
            options = {key: value for key, _, value in (word.partition("=") for word in words)}
            result = PASSES[name](result, options)
        return result if isinstance(result, str) else print_graph(result)

    def text(self) -> str:
        return f"{RUN} {self.passes}\n{self.input}{SEPARATOR}\n{self.expected}\n"


def read_cases(text: str) -> Iterator[Case]:
    lines = text.splitlines(keepends=True)
    starts = [i for i, line in enumerate(lines) if line.startswith(RUN)]
    assert starts[:1] == [0], f"the first line of an .ir file starts with `{RUN}`"
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        body = "".join(lines[start + 1 : end])
        given, _, expected = body.partition(SEPARATOR + "\n")
        yield Case(start + 1, lines[start][len(RUN) :].strip(), given, expected.strip("\n"))


class Mismatch(Exception):
    """The output is not what the file expects."""


class IrFile(pytest.File):
    cases: list[Case]

    def collect(self) -> Iterator[pytest.Item]:
        self.cases = list(read_cases(self.path.read_text()))
        for i, case in enumerate(self.cases):
            yield IrItem.from_parent(self, name=f"{i + 1}: {case.passes}", position=i)

    def rewrite(self, position: int, expected: str) -> None:
        self.cases[position] = replace(self.cases[position], expected=expected)
        self.path.write_text("\n".join(case.text() for case in self.cases))


class IrItem(pytest.Item):
    def __init__(self, *, position: int, **rest: Any) -> None:
        super().__init__(**rest)
        self.position = position

    @property
    def file(self) -> IrFile:
        assert isinstance(self.parent, IrFile)
        return self.parent

    def runtest(self) -> None:
        case = self.file.cases[self.position]
        actual = case.actual()
        if self.config.getoption("--update-ir", default=False):
            self.file.rewrite(self.position, actual)
        elif actual != case.expected:
            raise Mismatch("\n".join(difference(case.expected, actual)))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, Mismatch):
            return f"{excinfo.value}\n(`pytest tests/ir --update-ir` accepts the new output)"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        line = self.file.cases[self.position].line
        return self.path, line - 1, f"{self.path.name}:{line} {self.name}"


def difference(expected: str, actual: str) -> Iterator[str]:
    return difflib.unified_diff(
        expected.splitlines(), actual.splitlines(), "expected", "actual", lineterm=""
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-ir", action="store_true", help="rewrite the expectations of *.ir files"
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    return IrFile.from_parent(parent, path=file_path) if file_path.suffix == ".ir" else None
