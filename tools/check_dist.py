"""Compare the sdist and the wheel in a folder with the files of the checkout.

An editable install hides what a distribution lacks: a package that is missing from the list in
pyproject.toml, or a data file.
"""

from __future__ import annotations

import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOLDERS = {"ir": "ir", "passes": "passes", "frontends": "frontends", "backends": "backends"}


def sources() -> dict[str, str]:
    """Every file that must ship: path in the checkout -> path in the wheel."""
    own = ROOT / "src"
    folders = [own / "prunec", *(f for f in (own / "prunec").iterdir() if f.name not in FOLDERS)]
    files = [f for folder in folders if folder.is_dir() for f in _files(folder, "*")]
    shipped = {f"src/{f.relative_to(own)}": f.relative_to(own).as_posix() for f in files}
    for folder, package in FOLDERS.items():
        for file in _files(ROOT / folder, "**/*"):
            inside = file.relative_to(ROOT / folder).as_posix()
            shipped[f"{folder}/{inside}"] = f"prunec/{package}/{inside}"
    return shipped


def _files(folder: Path, pattern: str) -> Iterable[Path]:
    found = (f for f in folder.glob(pattern) if f.is_file() and "__pycache__" not in f.parts)
    return sorted(found)


def wheel_problems(wheel: Path) -> list[str]:
    """What the wheel lacks or has too much."""
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if not n.endswith("/")}
    info = {n for n in names if n.split("/")[0].endswith(".dist-info")}
    problems = _differences(wheel.name, set(sources().values()), names - info)
    for needed in ("/licenses/LICENSE", "/entry_points.txt", "/METADATA"):
        if not any(n.endswith(needed) for n in info):
            problems.append(f"{wheel.name}: no {needed}")
    if PROJECT.get("readme") != "README.md":
        problems.append("pyproject.toml: readme is not README.md, so PyPI would show no text")
    return problems


def sdist_problems(sdist: Path) -> list[str]:
    """What the sdist lacks or has too much; links would be followed or lost by the next build."""
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    problems = [f"{sdist.name}: {m.name} is a link" for m in members if m.issym() or m.islnk()]
    names = {m.name.partition("/")[2] for m in members if m.isfile()}
    roots = (*FOLDERS, "src")
    code = {n for n in names if n.split("/")[0] in roots and ".egg-info/" not in n}
    problems += _differences(sdist.name, set(sources()), code)
    problems += [
        f"{sdist.name}: no {needed}"
        for needed in ("pyproject.toml", "LICENSE", "README.md", "PKG-INFO")
        if needed not in names
    ]
    return problems


def _differences(name: str, expected: set[str], found: set[str]) -> list[str]:
    lacking = [f"{name}: lacks {path}" for path in sorted(expected - found)]
    extra = [f"{name}: has {path} from nowhere" for path in sorted(found - expected)]
    return lacking + extra


def main(folder: Path) -> int:
    """Print every problem; 1 if there is any."""
    version = PROJECT["version"]
    wheel = folder / f"prunec-{version}-py3-none-any.whl"
    sdist = folder / f"prunec-{version}.tar.gz"
    problems = [f"no {path}" for path in (wheel, sdist) if not path.exists()]
    if not problems:
        problems = wheel_problems(wheel) + sdist_problems(sdist)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{wheel.name} and {sdist.name} hold all {len(sources())} files of the checkout")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
