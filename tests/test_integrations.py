"""Integrations: each has a script, a page that the others lead to, and data that hold together."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "benchmarks" / "integrations"
PAGES = ROOT / "docs" / "integrations"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script as it is imported when it is run."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.syspath_prepend(str(SCRIPTS.parent))
    return importlib.import_module


def test_every_tool_has_a_script_and_a_page_that_is_linked(load: Any) -> None:
    tools = set(load("toolchain").TOOLS)
    assert {path.stem.removeprefix("with_") for path in SCRIPTS.glob("with_*.py")} == tools
    pages = {path.name for path in PAGES.glob("*.md")}
    assert {f"{name}.md" for name in tools} | {"onnxruntime.md", "README.md"} == pages
    listed = (PAGES / "README.md").read_text(encoding="utf-8")
    assert all(f"({name})" in listed for name in pages - {"README.md"})
    assert "(docs/integrations/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_task_for_the_harness_names_fields_of_its_data(load: Any, tmp_path: Path) -> None:
    module = load("with_lm_eval")
    folder = module._tasks(tmp_path / "tasks")
    lines = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["cities"][line["answer"]].strip() == module.CAPITALS[line["country"]]
    for name in module.TASKS:
        task = yaml.safe_load((folder / f"{name}.yaml").read_text())
        assert task["task"] == name
        assert task["dataset_kwargs"]["data_files"]["test"] == str(folder / "data.jsonl")


def test_a_command_is_told_as_typed(load: Any, tmp_path: Path) -> None:
    steps = load("steps").Steps(str(tmp_path / "net"), str(tmp_path))
    steps.run("sh", "-c", f"echo one; echo {tmp_path}/net/x >&2")
    assert steps.done[0]["output"][0] == "one"
    assert steps.done[0]["command"].endswith("./net/x >&2")
    with pytest.raises(SystemExit, match="exit code 3"):
        steps.run("sh", "-c", "exit 3")
