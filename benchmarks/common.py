"""What the benchmarks share: models, measured commands, and the one JSON document each prints."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = [
    "ROOT",
    "Figure",
    "Finished",
    "cache",
    "command_line",
    "cpus",
    "data_file",
    "figures",
    "main",
    "model",
    "parser",
    "prunec",
    "quiet",
    "run",
    "say",
    "source_hash",
    "speaks",
]

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
SOURCES = ("ir", "passes", "frontends", "backends", "src", "benchmarks")
PACKAGES = ("torch", "transformers", "onnxruntime", "onnx-ir", "numpy", "safetensors")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
RELATIVES = 0.5
"""Seconds between two looks for processes that a measured command has started."""
TAIL = 3000
"""Characters of standard error that are kept of a command that failed."""

Document = dict[str, Any]


# -- what a benchmark is ----------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Help goes to standard output, wherever `main` sends what is printed meanwhile."""

    def print_help(self, file: Any = None) -> None:
        super().print_help(file or sys.__stdout__)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose --help is the benchmark's own docstring."""
    return _Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def main(run: Callable[[Sequence[str] | None], Document]) -> None:
    """Call `run`, which parses the arguments and measures, and print its result as JSON.

    Whatever libraries print meanwhile goes to standard error. The exit code says whether it was
    measured; whether the figures were met stands in the document (`met`).
    """
    quiet()
    started, load = time.time(), os.getloadavg()
    with contextlib.redirect_stdout(sys.stderr):
        found = run(None)
    figures_ = found.get("figures", [])
    document = {
        "benchmark": Path(sys.argv[0]).stem,
        "met": all(figure["met"] for figure in figures_) if figures_ else None,
        **found,
        "seconds": round(time.time() - started, 1),
        "environment": environment(load),
    }
    print(json.dumps(document, indent=1, default=str))


@dataclass(frozen=True)
class Figure:
    """Something promised and what was found; the bounds are inclusive."""

    what: str
    found: float | None
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        if self.found is None or self.found != self.found:
            return False
        above = self.least is None or self.found >= self.least
        return above and (self.most is None or self.found <= self.most)


def figures(*found: Figure) -> list[Document]:
    """Figures as JSON values; a bound that does not apply is left out."""
    rows = []
    for figure in found:
        fields = {k: v for k, v in vars(figure).items() if v is not None or k == "found"}
        rows.append({**fields, "met": figure.met})
        bound = f"at most {figure.most}" if figure.least is None else f"at least {figure.least}"
        say(f"{figure.what}: {figure.found} ({bound}): {'met' if figure.met else 'NOT MET'}")
    return rows


def say(text: str) -> None:
    """Tell progress, on standard error."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def quiet() -> None:
    """Keep libraries from talking, and from asking the network; children inherit it."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def environment(load: tuple[float, float, float]) -> Document:
    """Where it was measured. A load average well above 0 at the start means a busy machine."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "sources": source_hash(),
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cpus": cpus(),
        "threads": {name: os.environ[name] for name in THREADS if name in os.environ},
        "load_average_before": [round(x, 2) for x in load],
        "packages": {name: _version(name) for name in ("prunec", *PACKAGES)},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def source_hash() -> str:
    """A hash of prunec and the benchmarks, so that results of other versions are told apart."""
    total = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            total.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return total.hexdigest()[:16]


def _git(*arguments: str) -> str | None:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.check_output(
            ["git", "-C", str(ROOT), *arguments], text=True, stderr=subprocess.DEVNULL
        ).strip()
    return None


def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# -- what it measures -------------------------------------------------------------------------


def model(name: str) -> Path:
    """The folder of `smollm2`, `gemma3` or `minilm` (made if need be), or of a path as it is."""
    if os.sep in name or Path(name).is_dir():
        return Path(name).resolve()
    sys.path.insert(0, str(ROOT / "tools"))
    import models

    found: Path = models.ensure(name)
    return found


def speaks(folder: Path) -> bool:
    """Whether the model in a folder predicts tokens, by its own configuration."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return any("CausalLM" in name for name in config.get("architectures") or ())


def cache(given: Path | None = None) -> Path:
    """A folder for what benchmarks make once or keep between runs.

    `given`, else $PRUNEC_BENCHMARKS, else ~/.cache/prunec/benchmarks.
    """
    chosen = os.environ.get("PRUNEC_BENCHMARKS")
    folder = given or (Path(chosen) if chosen else Path.home() / ".cache" / "prunec" / "benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def data_file(folder: Path | None, name: str) -> Path:
    """A text of the data folder, `../shared/data` beside the checkout unless one is given."""
    path = (folder or DATA) / name
    if not path.is_file():
        raise SystemExit(f"there is no {path}: give the folder that holds {name} with --data-dir")
    return path.resolve()


# -- commands ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """A command that has ended. Memory in bytes: `peak_rss` of the largest process, and
    `peak_anonymous`, resident and not backed by a file, of all its processes together, sampled
    (None where there is no /proc)."""

    command: tuple[str, ...]
    exit_code: int
    seconds: float
    cpu_seconds: float
    peak_rss: int
    peak_anonymous: int | None
    stdout: str
    stderr: str

    def json(self) -> Document:
        """Standard output, which must be one JSON document."""
        found: Document = json.loads(self.stdout)
        return found

    def expect(self, *exit_codes: int) -> Finished:
        """Itself; ends the benchmark with what the command said if it ended otherwise."""
        if self.exit_code in (exit_codes or (0,)):
            return self
        told = f"{' '.join(self.command)}\nended with exit code {self.exit_code}\n{self.stderr}"
        raise SystemExit(told)


def prunec(*arguments: str | Path) -> tuple[str, ...]:
    """The installed command of this environment, with arguments."""
    return (str(Path(sys.executable).parent / "prunec"), *map(str, arguments))


def command_line(command: Iterable[str | Path]) -> str:
    """A command as a reader would type it."""
    words = [str(word) for word in command]
    return " ".join([Path(words[0]).name, *words[1:]])


def run(
    command: Sequence[str | Path],
    *,
    timeout: float = 7200,
    interval: float = 0.02,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run a command and measure it; a command beyond `timeout` seconds is killed (exit -9).

    Call this from a process that is small itself: a child counts the memory of its parent until
    it has become another program.
    """
    words = tuple(map(str, command))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        watch = _Watch(process.pid)
        try:
            with _waiter(process.pid) as wait:
                while not wait(interval):
                    watch.sample()
                    if time.perf_counter() - start > timeout:
                        os.killpg(process.pid, signal.SIGKILL)
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        unit = 1 if sys.platform == "darwin" else 1024
        return Finished(
            words,
            process.returncode,
            seconds,
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss * unit,
            watch.peak,
            _text(out),
            _text(err)[-TAIL:],
        )


@contextlib.contextmanager
def _waiter(pid: int) -> Iterator[Callable[[float], bool]]:
    """A function that waits at most so many seconds for a child to end, and says if it has."""
    if not hasattr(os, "pidfd_open"):
        yield lambda seconds: _ended(pid, seconds)
        return
    handle = os.pidfd_open(pid)
    try:
        yield lambda seconds: bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def _ended(pid: int, seconds: float) -> bool:
    time.sleep(seconds)
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


class _Watch:
    """Samples the anonymous memory of a process and of all that it has started."""

    def __init__(self, pid: int) -> None:
        self.pid, self.family, self.looked = pid, {pid}, 0.0
        self.peak: int | None = 0 if Path("/proc/self/status").exists() else None

    def sample(self) -> None:
        if self.peak is None:
            return
        if time.perf_counter() - self.looked > RELATIVES:
            self.family, self.looked = _family(self.pid), time.perf_counter()
        self.peak = max(self.peak, sum(map(_anonymous, self.family)))


def _family(pid: int) -> set[int]:
    """The processes of a session: those that the command started, unless they left it."""
    found = {pid}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            # pid (command) state ppid pgrp session ...; the command may hold anything
            if int(path.read_text().rpartition(")")[2].split()[3]) == pid:
                found.add(int(path.parent.name))
    return found


def _anonymous(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", errors="replace")
