"""Targets in time for ONNX files: blocks are parts of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from test_onnx_cache import decoder
from test_onnx_cli import residual_mlp, told
from test_timing import Pretended, counted, pretend

from prunec.backends.ort_program import OrtProgram
from prunec.options.prune import PruneOptions
from prunec.options.target import parse_targets
from prunec.passes.rewrite import Rewritten
from prunec.progress import Silent
from prunec.runs.loading import Loaded, load
from prunec.timing.clock import Clock, start_clock
from prunec.timing.file import FilePrograms

__all__ = ["pretend"]

EXACT = 1e-5


def clock_of(path: Path, **options: Any) -> tuple[Loaded, Clock, FilePrograms]:
    asked = PruneOptions(
        str(path), out=None, targets=parse_targets(["speedup=1.2x"]), method="magnitude",
        dry_run=True, **{"batch": 2, "length": 6, **options},
    ).settle()  # fmt: skip
    loaded = load(str(path), trust_remote_code=False, need_weights=True, progress=Silent(),
                  caches=asked.allow_interface_change)  # fmt: skip
    clock = start_clock(loaded, asked, Silent())
    assert isinstance(clock.programs, FilePrograms)
    return loaded, clock, clock.programs


def run(program: Any, folder: Path) -> list[Any]:
    path = folder / "part.onnx"
    program.write(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, dict(program.feeds))
    return found


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("make", [residual_mlp, decoder])
def test_a_part_computes_what_the_file_does(
    tmp_path: Path, make: Callable[[Path], Path], phase: str
) -> None:
    if (make, phase) == (residual_mlp, "decode"):
        pytest.skip("it has no cache")
    loaded, clock, programs = clock_of(
        make(tmp_path / "model.onnx"), phase=phase, allow_interface_change=True
    )
    left = loaded.left
    whole = OrtProgram(left.model, left.graph, left.nodes, left.tensors)
    kinds = {block.kind.key: block.kind for block in clock.blocks if block.layer is not None}
    assert 1 <= len(kinds) < len(clock.blocks) - 1, "blocks that do the same are one kind"
    for kind in kinds.values():
        graph = kind.coupling.graph
        ((_, value),) = graph.outputs
        wanted = whole.stretch(0, whole.end, [value[1:]], programs.feeds)
        (expected,) = wanted.run(programs.feeds, left.weights).values()
        program = programs.part(graph, Rewritten(graph, {}), left.weights)
        (found,) = run(program, tmp_path)
        np.testing.assert_allclose(found, expected, atol=EXACT, rtol=EXACT)
        if phase == "decode":
            assert any(x.shape[2:3] == (6,) for x in program.feeds.values() if x.ndim == 4)


@pytest.mark.parametrize("make", [residual_mlp, decoder])
def test_narrow_parts_run(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    loaded, clock, programs = clock_of(make(tmp_path / "model.onnx"), allow_interface_change=True)
    for kind in {block.kind.key: block.kind for block in clock.blocks}.values():
        if kind.whole is not None:
            continue
        smaller = kind.rewritten(tuple(max(1, n // 2) for n in kind.dense))
        program = programs.part(kind.coupling.graph, smaller, loaded.weights)
        (found,) = run(program, tmp_path)
        shape = list(smaller.graph.types[smaller.graph.outputs[0][1]].shape)
        assert all(a == b for a, b in zip(found.shape, shape, strict=True) if isinstance(b, int))
        written = sum(f.stat().st_size for f in tmp_path.glob("part.onnx*"))
        programs.part(
            kind.coupling.graph, Rewritten(kind.coupling.graph, {}), loaded.weights
        ).write(tmp_path / "dense.onnx")
        assert written < sum(f.stat().st_size for f in tmp_path.glob("dense.onnx*"))


def test_what_is_left_without_blocks(tmp_path: Path) -> None:
    loaded, clock, programs = clock_of(
        decoder(tmp_path / "model.onnx"), allow_interface_change=True
    )
    rest = clock.blocks[-1].kind
    assert rest.whole is not None
    program = programs.of(rest.whole, Rewritten(rest.whole.graph, {}), loaded.weights)
    assert set(program.feeds) == {"input_ids"}
    (logits,) = run(program, tmp_path)
    assert logits.shape == (2, 6, 37)


def test_the_blocks_of_a_file_add_up(
    capsys: pytest.CaptureFixture[str], pretend: Callable[..., Pretended], tmp_path: Path
) -> None:
    made = pretend(counted)
    model = residual_mlp(tmp_path / "model.onnx")
    code, report = told(
        capsys, "prune", str(model), "-o", str(tmp_path / "out"), "--target", "speedup=1.1x",
        "--method", "magnitude", "--verify",
    )  # fmt: skip
    assert code == 0, report
    time = report["notes"]["time"]
    assert made.opened > 2
    assert time["speedup"] >= 1.1 * 0.97
    assert time["predicted"] == pytest.approx(time["pruned"], rel=0.05)
    assert all(check["passed"] for check in report["checks"])


def test_blocks_of_a_file_go(
    capsys: pytest.CaptureFixture[str], pretend: Callable[..., Pretended], tmp_path: Path
) -> None:
    pretend(counted)
    model = decoder(tmp_path / "model.onnx")
    data = tmp_path / "data.npz"
    past = {f"past__{i}__{k}": np.zeros((4, 4, 0, 6), np.float32) for i in (0, 1) for k in
            ("key", "value")}  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, 37, (4, 5))
    np.savez(data, input_ids=tokens, **past)
    code, report = told(
        capsys, "prune", str(model), "-o", str(tmp_path / "out"), "--target", "speedup=1.3x",
        "--phase", "decode", "--length", "9", "--groups", "sublayer", "--calibration", str(data),
        "--allow-interface-change",
    )  # fmt: skip
    assert code == 0, report
    assert len(report["removed"]) == 1
    assert report["notes"]["time"]["phase"] == "decode"
    assert report["targets"][0]["met"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_file_is_measured(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    runtime: str,
) -> None:
    """No figure is asserted: it is a tiny model."""
    pytest.importorskip(runtime)
    monkeypatch.setenv("PRUNEC_CACHE", str(tmp_path / "cache"))
    code, report = told(
        capsys, "prune", str(decoder(tmp_path / "model.onnx")), "-o", str(tmp_path / "out"),
        "--target", "speedup=1.02x", "--runtime", runtime, "--threads", "1", "--phase", "decode",
        "--length", "64", "--method", "magnitude", "--allow-interface-change",
        "--groups", "query_head,kv_head,hidden",
    )  # fmt: skip
    if code == 3 and "error" in report:
        codes = {problem["code"] for problem in report["error"]["diagnostics"]}
        assert codes <= {"P403", "P404"}, report  # it may not become faster, and then it says so
        return
    assert report["notes"]["time"]["runtime"] == runtime
    assert report["notes"]["time"]["pruned"] > 0


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--phase", "decode"), "P868", "no cache"),
        (("--runtime", "torch"), "P864", "torch does not run"),
    ],
)
def test_refusals(
    capsys: pytest.CaptureFixture[str],
    pretend: Callable[..., Pretended],
    tmp_path: Path,
    options: tuple[str, ...],
    code: str,
    says: str,
) -> None:
    pretend(counted)
    model = residual_mlp(tmp_path / "model.onnx")
    exit_code, report = told(
        capsys, "prune", str(model), "-o", str(tmp_path / "out"), "--target", "speedup=1.1x",
        "--method", "magnitude", *options,
    )  # fmt: skip
    (problem,) = report["error"]["diagnostics"]
    assert (exit_code, problem["code"]) == (2, code)
    assert says in problem["message"]
