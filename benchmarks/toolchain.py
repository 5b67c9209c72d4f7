"""prunec in the toolchains of others, each installed with pip into an environment of its own.

    python benchmarks/toolchain.py openvino gguf
    python benchmarks/toolchain.py --models /path/to/a/tiny/llama lm_eval

Without a name all are run. An environment gets torch, this checkout as `prunec[torch]`, and the
tool in the version that the pages in docs/integrations speak of; it is made once and kept in
~/.cache/prunec/integrations, or in $PRUNEC_INTEGRATIONS. There integrations/with_NAME.py prunes
each model, runs the tool on what came out, and checks what it gives. A row has the commands as
they were run, what they printed last, versions and findings, or the end of the error.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common import ROOT, Document, model, parser, say, source_hash
from common import main as printed
from common import run as measured

TOOLS: dict[str, tuple[str, ...]] = {
    "openvino": ("openvino==2026.4.1",),
    "gguf": ("scikit-build-core==1.1.2",),
    "lm_eval": ("lm-eval[hf]==0.4.13",),
    "executorch": ("executorch==1.5.1",),
    "coreml": ("coremltools==9.0",),
    "olive": ("olive-ai==0.13.0",),
    "optimum": ("optimum==2.3.0",),
    "torchao": ("torchao==0.18.0",),
}
"""What is installed beside `prunec[torch]`; scikit-build-core is what the source distribution that
carries llama.cpp's converter is asked for its name with."""

DECODERS = ("gguf", "lm_eval")
"""Tools that have no use for an encoder; the others are shown with MiniLM."""

CONSTRAINTS = ROOT / "constraints.txt"


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("names", nargs="*", metavar="NAME", help=f"some of {', '.join(TOOLS)}")
    add("--models", nargs="+", metavar="M", help="[minilm; smollm2 for gguf and lm_eval]")
    asked = options.parse_args(arguments)
    if unknown := set(asked.names) - set(TOOLS):
        options.error(f"no integration {', '.join(sorted(unknown))}")
    rows = []
    for name in asked.names or TOOLS:
        python = environment(name)
        chosen = asked.models or ["smollm2" if name in DECODERS else "minilm"]
        rows += [_row(name, python, model(one)) for one in chosen]
    return {"rows": rows, "failed": sum("error" in row for row in rows)}


def environment(name: str) -> Path:
    """The Python of an integration's environment, made or brought up to date."""
    chosen = os.environ.get("PRUNEC_INTEGRATIONS")
    home = Path(chosen) if chosen else Path.home() / ".cache" / "prunec" / "integrations"
    folder = home / name
    python, stamp = folder / "bin" / "python", folder / ".installed"
    torch = next(line for line in _lines(CONSTRAINTS) if line.startswith("torch=="))
    wanted = {
        "tools": hashlib.sha256(" ".join((torch, *TOOLS[name])).encode()).hexdigest(),
        "sources": source_hash(),
    }
    found = json.loads(stamp.read_text()) if stamp.exists() else {}
    if found == wanted:
        return python
    if found.get("tools") != wanted["tools"]:
        say(f"{name}: making {folder}")
        home.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        _pip(python, "--upgrade", "pip")
        _pip(python, torch)
        _pip(python, torch, f"{ROOT}[torch]", *TOOLS[name], "-c", str(CONSTRAINTS))
    else:
        _pip(python, "--no-deps", "--force-reinstall", str(ROOT))
    stamp.write_text(json.dumps(wanted))
    return python


def _pip(python: Path, *words: str) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q", *words]
    subprocess.run(command, check=True, stdout=sys.stderr)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _row(name: str, python: Path, folder: Path) -> Document:
    say(f"{name}: {folder.name}")
    script = Path(__file__).parent / "integrations" / f"with_{name}.py"
    with tempfile.TemporaryDirectory() as work:
        done = measured([python, script, folder, work], environment={"PYTHONPATH": ""})
    row: Document = {"integration": name, "model": folder.name, "seconds": round(done.seconds, 1)}
    if done.exit_code:
        return {**row, "error": done.stderr}
    return {**row, **done.json()}


if __name__ == "__main__":
    printed(run)
