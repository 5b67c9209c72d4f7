"""The command line: what is printed where, exit codes, and what reaches the pipeline.

The pipeline itself is a fake here, so that every way it can end is tried.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunec.cli.app import main
from prunec.cli.console import Console
from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError, fail
from prunec.options.prune import PruneOptions
from prunec.options.recipe import read_recipe, write_recipe
from prunec.options.target import parse_targets
from prunec.progress import Progress
from prunec.reports.card import render_card
from prunec.reports.data import (
    Check,
    GroupRow,
    InspectReport,
    PinRow,
    PruneReport,
    Sizes,
    TargetRow,
    WrittenFormat,
)
from prunec.reports.escape import markdown, printable
from prunec.resume.hashes import hash_source

Seen = list[PruneOptions]
Result = Callable[[PruneOptions], PruneReport]

FFN = GroupRow(
    name="layers.0.mlp.neuron",
    role="neuron",
    size=8,
    places=(("layers.0.mlp.up.weight", 0), ("layers.0.mlp.down.weight", 1)),
    params_per_index=96,
    layer="layers.0",
    kept=6,
)
DENSE, PRUNED = Sizes(1000, 800, 4000, flops=5000), Sizes(750, 550, 3000, flops=3500)


def pruned(left: float = 750, difference: float = 0.0) -> PruneReport:
    return PruneReport(
        model="owner/[red]model",
        out="small",
        method="wanda",
        restore="ls",
        calibration="self",
        layout="uniform",
        dense=DENSE,
        pruned=PRUNED,
        targets=(TargetRow("params=75%", 1000, 750, left, left <= 753.75),),
        groups=(FFN,),
        formats=(WrittenFormat("hf", "hf", 3000),),
        checks=(Check("prune = mask", difference, 1e-5),),
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Callable[[Result], Seen]:
    """Put a fake in the place of the pipeline; the options it is called with are collected."""

    def install(result: Result) -> Seen:
        seen: Seen = []

        def prune(options: PruneOptions, progress: Progress) -> PruneReport:
            seen.append(options)
            return result(options)

        fake = types.ModuleType("prunec.verbs.pipeline")
        vars(fake)["prune"] = prune
        monkeypatch.setitem(sys.modules, "prunec.verbs.pipeline", fake)
        return seen

    return install


def raising(error: BaseException) -> Result:
    def result(options: PruneOptions) -> PruneReport:
        raise error

    return result


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def prune(model: Path, *arguments: object) -> int:
    return run("prune", model, "-o", model.parent / "out", "--target", "params=75%", *arguments)


# Help and usage


def test_help_imports_nothing_heavy() -> None:
    code = """
        import sys
        from prunec.cli.app import main
        for verb in [], ["inspect"], ["prune"], ["eval"], ["bench"]:
            assert main([*verb, "--help"]) == 0
        heavy = {"torch", "transformers", "onnx", "onnxruntime", "rich", "yaml", "numpy"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True)


@pytest.mark.parametrize("verb", ["inspect", "prune", "eval", "bench"])
def test_every_verb_teaches_by_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    shown = capsys.readouterr().out
    assert f"Examples:\n  prunec {verb} " in shown
    assert "--json" in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("prunec ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bogus"], "No such command"),
        (["prune", "--bogus"], "No such option"),
        (["inspect"], "Missing argument 'MODEL'"),
        (["eval", "m"], "Missing option '--data'"),
        (["prune", "m", "--seed", "x"], "not a valid integer"),
        (["prune", "--target", "params=75%", "-o", "x"], "no MODEL given"),
        (["prune", "m", "-o", "x"], "no target given"),
        (["prune", "m", "--target", "params=75%"], "no output folder"),
        (["prune", "m", "-o", "x", "--target", "params=0%"], "leave nothing"),
        (["prune", "m", "-o", "x", "--target", "params=100%"], "nothing to do"),
        (["prune", "m", "-o", "x", "--target", "params=150%"], "more than the whole"),
        (["prune", "m", "-o", "x", "--target", "banana"], "METRIC=VALUE"),
        (["prune", "m", "-o", "x", "--target", "latency=80ms", "--runtime", "abacus"], "'abacus'"),
        (["prune", "m", "-o", "x", "--target", "params=75%", "--plan", "p"], "a plan already"),
        (["prune", "m", "-o", "x", "--plan", "nope.json"], "does not exist"),
        (["prune", "-o", "x", "--recipe", "nope.yaml"], "does not exist"),
        (["prune", "m", "-o", "x", "--target", "params=75%", "--format", "hf,tf"], "'tf'"),
        (["prune", "m", "-o", "x", "--target", "params=75%", "--groups", "toes"], "'toes'"),
        (
            ["prune", "m", "-o", "x", "--target", "params=75%", "--calibration", "no"],
            "cannot be read",
        ),
        (
            ["prune", "m", "-o", "x", "--target", "params=75%", "--calibration", "none"]
            + ["--method", "wanda"],
            "no calibration data",
        ),
        (["bench", "m", "--batch", "0"], "at least 1"),
        (["eval", "m", "--data", "nope.txt"], "cannot be read"),
    ],
)
def test_wrong_usage(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == Exit.USAGE
    plain = capsys.readouterr()
    assert says in plain.err
    assert "Traceback" not in plain.err
    assert plain.out == ""
    assert run(*arguments, "--json") == Exit.USAGE
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit_code"] == 2
    assert any(says in diagnostic["message"] for diagnostic in error["diagnostics"])
    assert list(tmp_path.iterdir()) == []


def test_nothing_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == Exit.USAGE
    assert "Commands:" in capsys.readouterr().err


def test_an_existing_out_is_refused_before_the_pipeline(
    model: Path, pipeline: Callable[[Result], Seen], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = pipeline(lambda options: pruned())
    (model.parent / "out").mkdir()
    assert prune(model) == Exit.USAGE
    assert "exists" in capsys.readouterr().err
    assert prune(model, "--overwrite") == Exit.DONE
    assert prune(model, "--dry-run") == Exit.DONE
    assert len(seen) == 2


def test_the_model_is_not_overwritten(
    model: Path, pipeline: Callable[[Result], Seen], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = pipeline(lambda options: pruned())
    assert run("prune", model, "-o", model, "--target", "params=75%", "--overwrite") == Exit.USAGE
    assert "must stay" in capsys.readouterr().err
    assert not seen


# What reaches the pipeline


def test_defaults_are_settled(model: Path, pipeline: Callable[[Result], Seen]) -> None:
    seen = pipeline(lambda options: pruned())
    assert prune(model) == Exit.DONE
    (options,) = seen
    assert (options.method, options.restore, options.calibration) == ("auto", "ls", "self")
    assert options.parts.criterion == "obs"
    assert options.allocate == "uniform"  # the only one that the uniform layout holds
    assert options.formats == ("hf",)
    assert options.settle() == options


def test_options_are_passed_on(model: Path, pipeline: Callable[[Result], Seen]) -> None:
    seen = pipeline(lambda options: pruned())
    text = model.parent / "text.txt"
    text.write_text("some text")
    given = ["--method", "auto", "--groups", "neuron, kv_head", "--format", "torchscript,hf"]
    given += ["--layout", "per-layer", "--round-to", "8", "--seed", "7", "--verify"]
    given += ["--target", "blocks=60%", "--calibration", str(text), "--allocate", "global"]
    assert prune(model, *given) == Exit.DONE
    (options,) = seen
    assert [str(target) for target in options.targets] == ["params=75%", "blocks=60%"]
    assert options.groups == ("neuron", "kv_head")
    assert options.formats == ("hf", "torchscript")
    assert (options.layout, options.round_to, options.seed) == ("per-layer", 8, 7)
    assert (options.verify, options.resume, options.trust_remote_code) == (True, False, False)
    assert (options.calibration, options.allocate) == (str(text), "global")


@pytest.mark.parametrize(
    ("given", "method", "restore", "calibration"),
    [
        (["--method", "magnitude"], "magnitude", "none", "none"),
        (["--method", "magnitude", "--calibration", "self"], "magnitude", "none", "self"),
        (["--method", "wanda"], "wanda", "ls", "self"),
        (["--method", "flap"], "flap", "bias", "self"),
        (["--method", "criterion=wanda"], "criterion=wanda", "none", "self"),
        (["--method", "flap,restore=ls"], "flap,restore=ls", "ls", "self"),
        (["--method", "magnitude", "--restore", "ls"], "magnitude", "ls", "self"),
        (["--restore", "none"], "auto", "none", "self"),
        (["--method", "random", "--calibration", "none"], "random", "none", "none"),
    ],
)
def test_what_needs_data_gets_it(
    given: list[str],
    method: str,
    restore: str,
    calibration: str,
    model: Path,
    pipeline: Callable[[Result], Seen],
) -> None:
    seen = pipeline(lambda options: pruned())
    assert prune(model, *given) == Exit.DONE
    assert (seen[0].method, seen[0].restore, seen[0].calibration) == (method, restore, calibration)


def test_an_onnx_file_becomes_one() -> None:
    options = PruneOptions("m.onnx", Path("o"), parse_targets(["params=75%"])).settle()
    assert options.formats == ("onnx",)


# What comes back


def test_one_document_whatever_libraries_print(
    model: Path, pipeline: Callable[[Result], Seen], capsys: pytest.CaptureFixture[str]
) -> None:
    def noisy(options: PruneOptions) -> PruneReport:
        print("a library says hello")
        return pruned()

    pipeline(noisy)
    assert prune(model, "--json") == Exit.DONE
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document["pruned"]["params"] == 750
    assert document["exit_code"] == 0
    assert "hello" in shown.err


@pytest.mark.parametrize(("left", "difference"), [(800, 0.0), (750, 1e-3), (750, float("nan"))])
def test_not_met(
    left: float,
    difference: float,
    model: Path,
    pipeline: Callable[[Result], Seen],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipeline(lambda options: pruned(left, difference))
    assert prune(model) == Exit.NOT_MET
    assert ("NOT MET" if left > 760 else "FAILED") in capsys.readouterr().out
    assert prune(model, "--json") == Exit.NOT_MET
    assert json.loads(capsys.readouterr().out)["exit_code"] == 3


def test_the_table_shows_both_sides(
    model: Path, pipeline: Callable[[Result], Seen], capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline(lambda options: pruned())
    prune(model)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["parameters", "1k", "750", "75.0%"] in lines
    assert ["neuron", "1", "8", "6"] in lines
    assert any("owner/[red]model" in line for line in lines)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (fail("P042", "kv heads", help="keep 3"), 1, "error[P042]: kv heads\nhelp: keep 3"),
        (fail("P042", "wrong", exit_code=Exit.NOT_MET), 3, "error[P042]"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "out of memory"),
        (ImportError("libx.so: failed to map segment from shared object"), 1, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 1, "error[P991]"),
        (PermissionError(errno.EACCES, "Permission denied", "f"), 1, "error[P992]"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 1, "error[P991]"),
        (ModuleNotFoundError("no torch", name="torch.nn"), 1, 'pip install "prunec[torch]"'),
        (ZeroDivisionError("division\nby zero"), 1, "ZeroDivisionError: division by zero"),
        (AssertionError(), 1, "internal error: AssertionError"),
    ],
)
def test_errors(
    error: BaseException,
    code: int,
    says: str,
    model: Path,
    pipeline: Callable[[Result], Seen],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipeline(raising(error))
    assert prune(model) == code
    shown = capsys.readouterr()
    assert says in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert prune(model, "--json") == code
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == code


def test_a_traceback_on_demand(
    model: Path,
    pipeline: Callable[[Result], Seen],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PRUNEC_TRACEBACK", "1")
    pipeline(raising(ZeroDivisionError("x")))
    assert prune(model) == Exit.FAILED
    assert "Traceback" in capsys.readouterr().err
    pipeline(lambda options: pruned())
    assert prune(model) == Exit.DONE
    assert "Traceback" not in capsys.readouterr().err


def test_all_diagnostics_are_shown(
    model: Path, pipeline: Callable[[Result], Seen], capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline(raising(PrunecError([Diagnostic("P001", "one"), Diagnostic("P002", "two\x1b[31m")])))
    assert prune(model) == Exit.FAILED
    assert capsys.readouterr().err.endswith("error[P001]: one\nerror[P002]: two\\x1b[31m\n")


FAKE = """
    import os, signal, sys, time, types, pathlib
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a shell's `&`
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and this one below nohup
    from prunec.output.staging import staged
    fake = types.ModuleType("prunec.verbs.pipeline")
    def work(options, progress=None):
        ACT
    fake.prune = fake.inspect = work
    sys.modules["prunec.verbs.pipeline"] = fake
    from prunec.cli.app import main
    sys.exit(main())
"""


def process(act: str, *arguments: object) -> subprocess.Popen[str]:
    code = textwrap.dedent(FAKE).replace("ACT", act)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)]
)
def test_a_run_that_is_stopped_leaves_nothing(
    number: signal.Signals, code: int, model: Path
) -> None:
    act = "with staged(options.out): print('in', file=sys.stderr, flush=True); time.sleep(60)"
    out = model.parent / "out"
    arguments = ["prune", model, "-o", out, "--target", "params=75%"]
    with process(act, *arguments) as running:
        assert running.stderr is not None
        assert running.stderr.readline() == "in\n"
        running.send_signal(number)
        _, said = running.communicate(timeout=30)
    assert running.returncode == code
    assert said.count("\n") == 1
    assert [path.name for path in model.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_after_the_end_changes_nothing(number: signal.Signals, model: Path) -> None:
    """Libraries of a run may take a while to unload, as this object does."""
    act = f"""
    class Slow:
        def __del__(self, kill=os.kill, own=os.getpid(), sleep=time.sleep):
            kill(own, {int(number)})
            sleep(0.01)
    os.slow = Slow()
    return types.SimpleNamespace(to_json=lambda: [])
    """
    with process(act, "inspect", model, "--json") as running:
        _, said = running.communicate(timeout=30)
    assert (running.returncode, said) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_a_run_without_memory_still_says_so(model: Path) -> None:
    """What it holds is let go before anything is told, so that there is room to tell it."""
    act = """
    import resource
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (50 << 20), held + (50 << 20)))
    hoard = []
    for size in (1 << 20, 1000, 10):
        try:
            while True: hoard.append(bytes(size))
        except MemoryError:
            if size == 10: raise
    """
    out = model.parent / "out"
    with process(act, "prune", model, "-o", out, "--target", "params=75%") as running:
        _, said = running.communicate(timeout=60)
    assert running.returncode == 1
    assert said.startswith("error[P990]: out of memory\nhelp: ")
    assert said.count("\n") == 2


def test_a_reader_that_goes_away(model: Path) -> None:
    act = "return types.SimpleNamespace(to_json=lambda: ['x' * 1000] * 1000)"
    with process(act, "inspect", model, "--json") as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        said = running.stderr.read()
        running.wait(timeout=30)
    assert running.returncode == 141
    assert said == ""


# Inspect


def test_inspect_shows_groups_by_role_and_why_the_rest_is_pinned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = [
        GroupRow(
            f"layers.{i}.neuron",
            "neuron",
            8,
            ((f"layers.{i}.up.weight", 0), (f"layers.{i}.down.weight", 1)),
            96,
            f"layers.{i}",
        )
        for i in range(3)
    ]
    pinned = GroupRow("vocab", "vocab", 99, (("embed.weight", 0),), pinned="graph output")
    pins = tuple(
        PinRow(f"a{i}", f"%x{i}, %y, %z", f"softmax (%s{i} = aten.softmax)") for i in range(5)
    )
    sizes = Sizes(134_515_008, 1, 4)
    report = InspectReport("m", "torch", sizes, (*groups, pinned), pins, {"aten.odd": 2})
    fake = types.ModuleType("prunec.verbs.pipeline")
    vars(fake)["inspect"] = lambda options, progress: report
    monkeypatch.setitem(sys.modules, "prunec.verbs.pipeline", fake)
    assert run("inspect", "m") == Exit.DONE
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "parameters 134.5M" in lines
    assert "neuron 8 3 3 96 layers.*.up.weight[0], layers.*.down.weight[1]" in lines
    assert "softmax 5 a0 at %x0 and 2 more" in lines
    assert "graph output 1 vocab at embed.weight[0]" in lines
    assert "aten.odd 2" in lines
    assert run("inspect", "m", "--json") == Exit.DONE
    document = json.loads(capsys.readouterr().out)
    assert len(document["groups"]) == 4
    assert len(document["pinned"]) == 5
    assert document["unknown_ops"] == {"aten.odd": 2}


# Recipes


def test_a_recipe_repeats_a_run(model: Path, pipeline: Callable[[Result], Seen]) -> None:
    seen = pipeline(lambda options: pruned())
    text = model.parent / "text.txt"
    text.write_text("some text")
    prune(model, "--calibration", text, "--groups", "neuron", "--trust-remote-code")
    recipe = model.parent / "recipe.yaml"
    write_recipe(recipe, seen[0], hash_source(model))
    again = ["prune", "-o", model.parent / "out", "--recipe", recipe]
    assert run(*again) == Exit.DONE
    assert seen[1].targets == seen[0].targets
    assert (seen[1].model, seen[1].calibration) == (str(model), str(text))
    assert seen[1].groups == ("neuron",)
    assert not seen[1].trust_remote_code  # never from a recipe
    assert run(*again, "--target", "blocks=50%", "--seed", "3") == Exit.DONE
    assert [str(target) for target in seen[2].targets] == ["blocks=50%"]
    assert seen[2].seed == 3


@pytest.mark.parametrize("changed", ["model/config.json", "text.txt"])
def test_a_recipe_of_files_that_changed(
    changed: str,
    model: Path,
    pipeline: Callable[[Result], Seen],
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = pipeline(lambda options: pruned())
    text = model.parent / "text.txt"
    text.write_text("some text")
    prune(model, "--calibration", text)
    recipe = model.parent / "recipe.yaml"
    write_recipe(recipe, seen[0], hash_source(model))
    (model.parent / changed).write_text("other")
    again = ["prune", "-o", model.parent / "out", "--recipe", recipe]
    assert run(*again) == Exit.USAGE
    assert "is not what it was" in capsys.readouterr().err
    assert run(*again[:1], model, *again[1:], "--calibration", text) == Exit.DONE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "not YAML"),
        ("banana", "not a recipe"),
        ("version: 9", "version 9"),
        ("options: 3", "`options`"),
        ("options: {bogus: 3}", "'bogus'"),
        ("options: {trust_remote_code: true}", "'trust_remote_code'"),
        ("options: {seed: x}", "not a number"),
        ("options: {targets: params=75%}", "not a list"),
        ("options: {targets: [params=0%]}", "leave nothing"),
        ("model: [x]", "`model`"),
        ("!!python/object/apply:os.system [true]", "not YAML"),
    ],
)
def test_files_that_are_no_recipe(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(PrunecError) as caught:
        read_recipe(path)
    assert says in str(caught.value)
    assert caught.value.exit_code is Exit.USAGE


def test_a_hash_is_of_what_makes_the_model(model: Path) -> None:
    before = hash_source(model)
    (model / "notes.md").write_text("read me")
    assert hash_source(model) == before
    (model / "model.safetensors").write_bytes(b"x")
    assert hash_source(model) != before


# What comes from models is text, not markup


def test_names_cannot_become_markup() -> None:
    card = render_card(pruned())
    assert "owner/\\[red\\]model" in card
    assert "| parameters | 1,000 | 750 | 75.0 % |" in card
    assert markdown("a|b\n# c") == "a\\|b \\# c"
    assert printable("a\x1b]0;x\x07\u202e") == "a\\x1b]0;x\\x07\\u202e"


def test_a_card_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    report = PruneReport(
        **{**vars(pruned()), "model": str(tmp_path / "m"), "calibration": str(tmp_path / "t.txt")}
    )
    assert str(tmp_path) not in render_card(report)


def test_progress_away_from_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console: Any = Console(as_json=False)
    with console.step("outer"), console.step("inner", total=3) as advance:
        advance(2)
        console.note("a fact")
    console.warn(Diagnostic("P001", "odd", help="look"))
    shown = capsys.readouterr()
    assert shown.out == ""
    expected = ["outer ...", "inner ...", "a fact", "warning[P001]: odd", "help: look"]
    assert shown.err.splitlines() == expected
