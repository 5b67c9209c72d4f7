"""Other tools, each in a virtual environment of its own beside this one's packages."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

from common import run, say

__all__ = ["TORCH_PRUNING", "rival", "torch_pruning"]

TORCH_PRUNING = "torch-pruning==1.6.1"


def rival(folder: Path, package: str, imports: str) -> Path:
    """The Python of a virtual environment with `package` (name==version) beside this one's
    packages; `imports` are the modules that it must then find."""
    home = folder / f"{package.partition('==')[0]}-env"
    python = home / "bin" / "python"
    packages = sysconfig.get_paths()["purelib"]
    if not (home / "done").is_file():
        say(f"installing {package} into {home}")
        shutil.rmtree(home, ignore_errors=True)
        run((sys.executable, "-m", "venv", "--without-pip", str(home))).expect(0)
        # what it depends on stays what it is here, torch above all
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python))
        run((*pip, "install", "-q", "--no-deps", package)).expect(0)
    (own,) = (home / "lib").glob("python*/site-packages")
    (own / "beside.pth").write_text(packages + "\n", encoding="utf-8")
    run((str(python), "-P", "-c", f"import {imports}")).expect(0)
    (home / "done").touch()
    return python


def torch_pruning(folder: Path) -> Path:
    """The Python that has Torch-Pruning."""
    return rival(folder, TORCH_PRUNING, "torch_pruning, transformers")
