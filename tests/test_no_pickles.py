"""Nothing that is read can run code: no pickle is loaded anywhere, whoever wrote it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("ir", "passes", "frontends", "backends", "src/prunec")
FILES = sorted({p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")})
PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def found(code: str) -> Iterator[str]:
    """Imports of what unpickles, and calls that do unless they are told not to."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Import(names=names):
                yield from (n.name for n in names if n.name.partition(".")[0] in PICKLING)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in PICKLING:
                yield module
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                if ("weights_only", True) not in options(node):
                    yield "torch.load"
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                yield "allow_pickle"
            case ast.keyword(arg="weights_only", value=ast.Constant(value=False)):
                yield "weights_only"


def options(call: ast.Call) -> list[tuple[str | None, object]]:
    return [(k.arg, k.value.value) for k in call.keywords if isinstance(k.value, ast.Constant)]


def test_no_code_unpickles() -> None:
    seen = {path.relative_to(ROOT): list(found(path.read_text("utf-8"))) for path in FILES}
    assert len(seen) > 200
    assert {path: what for path, what in seen.items() if what} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from dill import load", "import torch\ntorch.load(p)",
        "torch.load(p, weights_only=False)", "numpy.load(p, allow_pickle=True)",
    ],
)  # fmt: skip
def test_code_that_does_is_seen(code: str) -> None:
    assert list(found(code))
