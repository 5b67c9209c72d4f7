"""Integrations: each has a script, a page that the others lead to, and data that hold together."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
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


@pytest.mark.parametrize(
    ("tool", "package"), [("olive f.json", "olive-ai"), ("optimum", "optimum")]
)
def test_a_tool_that_is_not_there_is_named(tool: str, package: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "prunec.integrations", *tool.split()],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr == (
        f"error[P891]: {package} is not installed\nhelp: pip install {package}\n"
    )
    assert not list(tmp_path.iterdir())


def test_registering_with_optimum_writes_one_file_and_takes_it_away(tmp_path: Path) -> None:
    """With a base of two names in the place of Optimum's, which is run in the benchmark."""
    home = tmp_path / "optimum" / "commands"
    home.mkdir(parents=True)
    (home / "base.py").write_text(
        "class BaseOptimumCLICommand: ...\n"
        "class CommandInfo:\n"
        "    def __init__(self, name, help): self.name = name\n"
    )
    script = (
        "import sys; from prunec.integrations.optimum import register\n"
        "file = register(remove=False)\n"
        "sys.path.insert(0, str(file.parent)); import register_prunec\n"
        "print(register_prunec.REGISTER_COMMANDS[0].COMMAND.name, file.parent, sep='\\n')\n"
        "print(*register(remove=True).parent.glob('*.py'))"
    )
    path = os.pathsep.join((str(tmp_path), str(ROOT / "src")))
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout.split("\n") == ["prunec", str(home / "register"), "", ""]
