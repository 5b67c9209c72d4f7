"""Mutate ONNX files: each is read and typed, or refused with a diagnostic, within five seconds.

    python benchmarks/onnx_fuzz.py --cases 20000 model.onnx ...

Bytes are changed, dropped and doubled at seeded places. Prints how many were read and refused;
exits with 1 at the first traceback or slow case, whose bytes are left in the current folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from prunec.frontends.onnx import read_onnx
from prunec.ir.diagnostics import PrunecError
from prunec.ir.dialects.onnx import ONNX
from prunec.passes.couple import couple

SLOW = 5.0


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        at = int(rng.integers(0, max(len(found), 1)))
        length = int(rng.integers(1, 17))
        match int(rng.integers(0, 4)):
            case 0:
                found[at : at + length] = rng.bytes(len(found[at : at + length]))
            case 1:
                del found[at : at + length]
            case 2:
                found[at:at] = found[at : at + length]
            case _:
                found = found[: max(1, at)] if rng.random() < 0.1 else found
    return bytes(found)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    originals = [path.read_bytes() for path in given.files]
    rng = np.random.default_rng(given.seed)
    read = refused = 0
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for case in range(given.cases):
            data = mutated(originals[case % len(originals)], rng)
            path.write_bytes(data)
            start = time.perf_counter()
            try:
                couple(read_onnx(path).graph, ONNX)
                read += 1
            except PrunecError:
                refused += 1
            except BaseException:
                Path("onnx-fuzz-failed.onnx").write_bytes(data)
                raise
            slowest = max(slowest, time.perf_counter() - start)
            if slowest > SLOW:
                Path("onnx-fuzz-slow.onnx").write_bytes(data)
                print(f"case {case} took {slowest:.1f} s", file=sys.stderr)
                return 1
    print(f"{given.cases} cases: {read} read, {refused} refused, slowest {slowest:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
