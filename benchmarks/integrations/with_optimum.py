"""Optimum: prunec as a subcommand of `optimum-cli`, registered, run and removed."""

from __future__ import annotations

import sys

from steps import Steps, size

TARGET = ("--target", "params=85%", "--method", "magnitude", "--calibration", "none")


def main(model: str, work: str) -> None:
    steps = Steps(model, work)
    steps.run("python", "-m", "prunec.integrations", "optimum")
    listed = steps.run("optimum-cli", "--help")
    steps.run("optimum-cli", "prunec", "prune", model, "-o", "small", *TARGET)
    steps.run("prunec", "prune", model, "-o", "plain", *TARGET)
    weights = "hf/model.safetensors"
    one, other = (steps.work / name / weights for name in ("small", "plain"))
    if one.read_bytes() != other.read_bytes():
        raise SystemExit("the subcommand and prunec itself wrote different weights")
    steps.run("optimum-cli", "prunec", "prune", model, "-o", "none", code=2)
    steps.run("python", "-m", "prunec.integrations", "optimum", "--remove")
    gone = steps.run("optimum-cli", "--help")
    if "prunec" not in listed or "prunec" in gone:
        raise SystemExit("optimum-cli --help: prunec is not listed, or is after its removal")
    steps.tell(("optimum", "transformers", "torch"), dense=size(steps.model / "model.safetensors"),
               pruned=size(one))  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
