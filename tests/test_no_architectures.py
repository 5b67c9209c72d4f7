"""The compiler knows no architecture: no model class and no model type is named in its code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

ROOT = Path(__file__).parent.parent
FOLDERS = ("ir", "passes", "backends")

CLASS = re.compile(r"\b[A-Z]\w*(?:For[A-Z]\w+|LMHeadModel|Config|PreTrainedModel)\b")
GENERAL = re.compile(r"^(?:PreTrained|Auto)")
"""What all models of transformers have in common."""


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Text in the code, without docstrings, which may say whose layout a rule is for."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr


def named(path: Path) -> list[str]:
    found = []
    for line, text in strings(path):
        classes = [name for name in CLASS.findall(text) if not GENERAL.match(name)]
        known = [name for name in classes if hasattr(transformers, name)]
        if text in CONFIG_MAPPING_NAMES and text not in WORDS:
            known.append(text)
        found += [f"{path.relative_to(ROOT)}:{line}: {name}" for name in known]
    return found


WORDS = {"clip", "git"}
"""Model types that are also words of their own."""


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_architecture_is_named(folder: str) -> None:
    found = [line for path in sorted((ROOT / folder).rglob("*.py")) for line in named(path)]
    assert found == []


def test_a_named_one_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.py"
    path.write_text('"""llama."""\nif kind == "llama" or name == "GPT2LMHeadModel":\n    pass\n')
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert named(path) == ["x.py:2: llama", "x.py:2: GPT2LMHeadModel"]
