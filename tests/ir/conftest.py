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

import pytest

from prunec.ir.diagnostics import PrunecError
from prunec.ir.graph import Graph
from prunec.ir.text import parse, print_graph
from prunec.ir.verify import verify

Options = Mapping[str, str]

RUN = "# RUN:"
SEPARATOR = "# ---"


def run_print(graph: Graph, options: Options) -> str:
    return print_graph(graph, locations=options.get("locations") != "false")


def run_verify(graph: Graph, options: Options) -> str:
    return "\n".join(d.render() for d in verify(graph)) or "valid"


PASSES: dict[str, Callable[[Graph, Options], Graph | str]] = {
    "print": run_print,
    "verify": run_verify,
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
