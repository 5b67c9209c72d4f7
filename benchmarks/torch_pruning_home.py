"""Where Torch-Pruning lives: a virtual environment of its own beside this one's packages."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

from common import run, say

__all__ = ["RIVAL", "rival"]

RIVAL = "torch-pruning==1.6.1"


def rival(folder: Path) -> Path:
    """The Python of a virtual environment with Torch-Pruning beside this one's packages."""
    home = folder / "torch-pruning-env"
    python = home / "bin" / "python"
    packages = sysconfig.get_paths()["purelib"]
    if not (home / "done").is_file():
        say(f"installing {RIVAL} into {home}")
        shutil.rmtree(home, ignore_errors=True)
        run((sys.executable, "-m", "venv", "--without-pip", str(home))).expect(0)
        # torch itself stays what it is: only the package, without what it depends on
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python))
        run((*pip, "install", "-q", "--no-deps", RIVAL)).expect(0)
    (own,) = (home / "lib").glob("python*/site-packages")
    (own / "beside.pth").write_text(packages + "\n", encoding="utf-8")
    check = (str(python), "-P", "-c", "import torch_pruning, transformers")
    run(check).expect(0)
    (home / "done").touch()
    return python
