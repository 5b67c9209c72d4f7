"""Run the command line where it must refuse: one diagnostic, an exit code, nothing written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from prunec.cli.app import main

__all__ = ["Place"]


@dataclass
class Place:
    """A folder with a model in it, and what the command line said there."""

    root: Path
    capture: pytest.CaptureFixture[str]

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def out(self) -> Path:
        return self.root / "out"

    def snapshot(self) -> dict[str, bytes]:
        """Every file below the folder, hidden ones included."""
        return {
            str(path.relative_to(self.root)): path.read_bytes() if path.is_file() else b""
            for path in self.root.rglob("*")
        }

    def refuse(self, code: int, *options: str) -> str:
        """Run `prune`, which must end with `code`, say one error and change nothing."""
        before = self.snapshot()
        found = main(["prune", str(self.model), "-o", str(self.out), *options])
        told = self.capture.readouterr()
        assert found == code, told.err
        assert told.out == ""
        assert told.err.count("error[") == 1
        assert "Traceback" not in told.err
        assert "internal error" not in told.err
        assert "help:" in told.err
        assert self.snapshot() == before
        return told.err[told.err.index("error[") :]
