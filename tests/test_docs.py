"""What the documentation shows works: its Python runs, its commands run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from worded import maker

from prunec.cli.app import cli, main

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^    \$ (prunec (?:.*\\\n)*.*)$", re.MULTILINE)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the documentation takes for granted: a model and a text."""
    source, _ = maker(tmp_path)("decoder")
    source.path.rename(tmp_path / "smollm2")
    for name in ("text.txt", "wikitext2-valid.txt"):
        (tmp_path / name).write_text("the sea is wide and the land is old " * 400)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_of_docs(desk: Path) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    blocks = FENCE.findall((ROOT / "docs" / "python.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 9
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    made = {"small", "checked", "embedding", "tuned"}
    assert made <= {path.name for path in desk.iterdir()}


def test_the_commands_of_the_tour(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = COMMAND.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {line.split()[1] for line in commands} == {
        "inspect",
        "prune",
        "eval",
        "bench",
        "recover",
        "sensitivity",
    }
    for line in commands:
        words = shlex.split(line.replace("\\\n", " "))[1:]
        small = ["--rank", "4", "--steps", "2"] if words[0] == "recover" else []
        assert main([*words, *small]) == 0, capsys.readouterr().err
    assert "prunable groups" in capsys.readouterr().out


def test_the_python_of_extending(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunec.passes.criteria import CRITERIA

    monkeypatch.delitem(CRITERIA, "loudest", raising=False)  # type: ignore[arg-type]
    names: dict[str, object] = {"__name__": "__main__"}
    for block in FENCE.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8")):
        exec(compile(block, "docs/extending.md", "exec"), names)
    assert "small" in names
    CRITERIA.pop("loudest")  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    found = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    local = [link for link in found if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TYPED = re.compile(r"^ {4}(?:\$ )?prunec ((?:.*\\\n)*.*)$", re.MULTILINE)


def typed(page: Path) -> list[list[str]]:
    """The commands of a page, each in words; what stands for something is left as it is."""
    found = TYPED.findall(page.read_text(encoding="utf-8"))
    return [shlex.split(line.replace("\\\n", " "), comments=True) for line in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_that_are_shown_can_be_typed(page: Path) -> None:
    """Verbs, options and values are ones that the command line takes."""
    with click.Context(cli) as context:
        for verb, *words in typed(page):
            command = cli.get_command(context, verb)
            assert command is not None, verb
            if "..." not in words:
                command.make_context(verb, words)


def test_commands_are_found() -> None:
    assert sum(len(typed(page)) for page in PAGES) > 40
