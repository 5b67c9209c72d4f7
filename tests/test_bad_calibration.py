"""Calibration data that cannot be used: one diagnostic, exit code 2, nothing written.

Everything goes through the command line and a tiny model.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import Place
from worded import maker, text

from prunec.options.prune import PruneOptions
from prunec.options.target import parse_targets

Files = dict[str, Any]
"""Contents by name: texts, bytes, arrays of an `.npz`, or one array of a `.npy`."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("saved")
    make = maker(folder)

    def model(kind: str) -> Path:
        if not (folder / kind).exists():
            make(kind)
        return folder / kind

    return model


@pytest.fixture
def place(
    saved: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Place]:
    """A folder with a model and some files in it."""

    def made(kind: str, files: Files) -> Place:
        root = tmp_path / "work"
        shutil.copytree(saved(kind), root / "model")
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            match content:
                case dict():
                    np.savez(path, **content)
                case np.ndarray():
                    np.save(path, content)
                case bytes():
                    path.write_bytes(content)
                case _:
                    path.write_text(content)
        capsys.readouterr()
        return Place(root, capsys)

    return made


IDS = np.ones((4, 9), np.int64)
IMAGES = np.zeros((4, 3, 224, 224), np.float32)

BAD: dict[str, tuple[str, str, Files, str, str]] = {
    # what: model, --calibration (@ is the folder), files, code, what it says
    "missing": ("decoder", "@/no.txt", {}, "P130", "no.txt"),
    "missing in a mixture": ("decoder", "self:0.5,@/no.txt:0.5", {}, "P130", "no.txt"),
    "missing with a weight": ("decoder", "@/no.txt:0.5", {}, "P130", "no.txt\n"),
    "empty": ("decoder", "@/e.txt:0.5,self", {"e.txt": " \n"}, "P130", "the text is empty"),
    "empty records": ("decoder", "@/e.jsonl", {"e.jsonl": ""}, "P130", "holds no text"),
    "short": ("decoder", "@/s.txt", {"s.txt": "w1 w2"}, "P132", "has 2 tokens, fewer than one"),
    "short records": (
        "decoder", "@/s.jsonl", {"s.jsonl": '{"text": "w1"}'}, "P132", "has 1 tokens, fewer",
    ),
    "latin": ("decoder", "@/l.txt", {"l.txt": b"gr\xfcn"}, "P131", "byte 2"),
    "compressed": ("decoder", "@/l.gz", {"l.gz": b"\x1f\x8b\x08\x00"}, "P131", "unpack it"),
    "zero": ("decoder", "@/a.txt:0", {"a.txt": "w1"}, "P137", "positive number, not 0"),
    "negative": ("decoder", "@/a.txt:-1,self:2", {"a.txt": "w1"}, "P137", "not -1"),
    "no number": ("decoder", "@/a.txt:half", {"a.txt": "w1"}, "P137", "not a number: 'half'"),
    "no name": ("decoder", "@/a.txt,,self", {"a.txt": "w1"}, "P137", "no name"),
    "damaged": (
        "decoder", "@/d.jsonl", {"d.jsonl": '{"text": "a"}\n{"text": '}, "P138", "d.jsonl: line 2",
    ),
    "several fields": (
        "decoder", "@/d.jsonl", {"d.jsonl": '{"a": "x", "b": "y"}'}, "P138",
        "none is called `text`",
    ),
    "nothing in the folder": ("decoder", "@/f", {"f/x.bin": b""}, "P139", "holds no data"),
    "outside": (
        "decoder", "@/t.npz", {"t.npz": {"input_ids": IDS + 62}}, "P140", "token id 63 of t.npz",
    ),
    "outside in a mixture": (
        "decoder", "self,@/t.npz", {"t.npz": {"input_ids": IDS - 2}}, "P140", "id -1 of t.npz",
    ),
    "unknown input": (
        "decoder", "@/t.npz", {"t.npz": {"input_ids": IDS, "colour": IDS}}, "P135", "input colour",
    ),
    "unknown file": ("decoder", "@/t", {"t/colour.npy": IDS}, "P135", "colour.npy"),
    "no arrays": ("decoder", "@/t.npz", {"t.npz": b"PK"}, "P135", "cannot be read"),
    "unlike lengths": (
        "decoder", "@/t.npz,@/a.txt", {"t.npz": {"input_ids": IDS}, "a.txt": text(900)}, "P141",
        "--calibration-length 9",
    ),
    "text for images": ("vision", "@/a.txt", {"a.txt": "w1"}, "P134", "reads pixel_values"),
    "whole numbers": (
        "vision", "@/i.npz", {"i.npz": {"pixel_values": IMAGES.astype(np.uint8)}}, "P135",
        "pixel_values is of int64, and the model reads floats",
    ),
    "wrong channels": (
        "vision", "@/i.npz", {"i.npz": {"pixel_values": IMAGES[:, :1]}}, "P135",
        "cannot read samples of pixel_values [1, 224, 224]",
    ),
    "not finite": (
        "vision", "@/i.npz", {"i.npz": {"pixel_values": IMAGES + np.nan}}, "P135", "not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_it_is_refused(what: str, place: Callable[..., Place]) -> None:
    kind, spec, files, code, says = BAD[what]
    here = place(kind, files)
    options = ("--calibration", spec.replace("@", str(here.root)), "--calibration-samples", "4")
    told = here.refuse(2, "--target", "blocks=80%", *options, "--calibration-length", "16")
    assert told.startswith(f"error[{code}]")
    assert says in told


@pytest.mark.parametrize(
    ("calibration", "windows"),
    [
        ("self", (32, 256)),
        ("self:3", (32, 256)),
        ("auto", (32, 256)),
        ("none", (64, 512)),
        ("@/a.txt", (64, 512)),
        ("@/a.txt,@/b.txt:2", (64, 512)),
        ("@/a.txt,self:0.5", (64, 256)),
    ],
)
def test_default_windows(calibration: str, windows: tuple[int, int], tmp_path: Path) -> None:
    """Writing text takes a model longer than reading it. What is asked for wins."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("some text")
    options = PruneOptions(
        "m",
        tmp_path / "out",
        parse_targets(["params=80%"]),
        method="magnitude" if calibration == "none" else "wanda",
        calibration=calibration.replace("@", str(tmp_path)),
    )
    settled = options.settle()
    assert (settled.calibration_samples, settled.calibration_length) == windows
    assert settled.settle() == settled
    asked = PruneOptions(**{**vars(options), "calibration_samples": 7, "calibration_length": 9})
    assert (asked.settle().calibration_samples, asked.settle().calibration_length) == (7, 9)


@pytest.mark.parametrize("option", ["--calibration-samples", "--calibration-length"])
@pytest.mark.parametrize("value", ["0", "-3"])
def test_no_windows(option: str, value: str, place: Callable[..., Place]) -> None:
    told = place("decoder", {}).refuse(2, "--target", "blocks=80%", option, value)
    assert f"{option} must be at least 1" in told


def test_a_pipe_is_no_file(place: Callable[..., Place]) -> None:
    """It would be read twice, and the second time there is nothing in it."""
    here = place("decoder", {})
    reading, writing = os.pipe()
    try:
        told = here.refuse(2, "--target", "blocks=80%", "--calibration", f"/dev/fd/{reading}")
    finally:
        os.close(reading)
        os.close(writing)
    assert "not a file" in told
