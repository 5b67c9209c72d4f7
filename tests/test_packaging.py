"""Packaging and import rules: what an editable install hides, found before a user finds it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import prunec

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("ir", "passes", "frontends", "backends")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def folders_with_code() -> dict[str, Path]:
    """Package name -> folder, for each folder on the disk that holds Python files."""
    home = ROOT / "src" / "prunec"
    found = {"prunec": home}
    for folder in home.iterdir():
        if not folder.is_symlink() and any(folder.glob("*.py")):
            found[f"prunec.{folder.name}"] = folder
    for name in FOLDERS:
        for file in (ROOT / name).rglob("*.py"):
            parts = file.parent.relative_to(ROOT).parts
            found[".".join(("prunec", *parts))] = file.parent
    return found


def required() -> dict[str, Requirement]:
    """Every package that pyproject.toml names, by canonical name."""
    project = PROJECT["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(line) for lines in lists for line in lines]
    return {canonicalize_name(r.name): r for r in requirements if r.name != "prunec"}


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_package_on_the_disk_is_listed() -> None:
    assert sorted(SETUPTOOLS["packages"]) == sorted(folders_with_code())


def test_every_package_is_mapped_to_its_folder() -> None:
    on_disk = {p: f.relative_to(ROOT).as_posix() for p, f in folders_with_code().items()}
    assert SETUPTOOLS["package-dir"] == on_disk


def test_every_package_has_an_init() -> None:
    lacking = [p for p, f in folders_with_code().items() if not (f / "__init__.py").is_file()]
    assert lacking == []


def test_every_data_file_is_listed() -> None:
    patterns = SETUPTOOLS["package-data"]
    unlisted = [
        f"{package}: {file.name}"
        for package, folder in folders_with_code().items()
        for file in folder.iterdir()
        if file.is_file() and file.suffix not in {".py", ".pyc"}
        if not any(fnmatch(file.name, p) for p in patterns.get(package, ()))
    ]
    assert unlisted == []
    assert (ROOT / "src" / "prunec" / "py.typed").is_file()


@pytest.mark.parametrize("name", FOLDERS)
def test_the_links_lead_to_the_root_folders(name: str) -> None:
    link = ROOT / "src" / "prunec" / name
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == ROOT / name


def test_the_two_statements_of_the_version_agree() -> None:
    assert prunec.__version__ == PROJECT["project"]["version"]


def test_every_dependency_is_pinned_within_its_range() -> None:
    pins = pinned()
    wrong = [
        f"{requirement} is pinned to {pins.get(name)}"
        for name, requirement in required().items()
        if name not in pins or not requirement.specifier.contains(pins[name])
    ]
    assert wrong == []


def test_every_dependency_is_explained() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = {canonicalize_name(name) for name in re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)}
    assert sorted(rows) == sorted(required())


def test_the_model_packages_are_pinned() -> None:
    lines = (ROOT / "requirements-models.txt").read_text(encoding="utf-8").splitlines()
    names = [line for line in lines if line and not line.startswith("#")]
    assert names
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line) for line in names)


def test_the_folders_import_nothing_of_prunec_itself() -> None:
    """Import-linter keeps the order among the folders; this is the rule above them."""
    graph = grimp.build_graph("prunec", cache_dir=None)
    below = tuple(f"prunec.{name}" for name in FOLDERS)
    upward = [
        f"{module} imports {imported}"
        for module in graph.modules
        if module.startswith(below)
        for imported in graph.find_modules_directly_imported_by(module)
        if not imported.startswith(below)
    ]
    assert upward == []


@pytest.mark.parametrize("module", ["prunec", "prunec.ir", "prunec.passes", "prunec.cli.app"])
def test_importing_it_loads_no_framework(module: str) -> None:
    """`pip install prunec` comes without torch, and `prunec --help` must not wait for it."""
    code = (
        f"import sys, {module}\n"
        "print(*sorted({'torch', 'transformers', 'onnxscript'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []
