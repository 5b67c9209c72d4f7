"""Options of pruning in rounds: how much a round takes, and how it is recovered from.

    --recover-every 15% --recover steps=200,train=full

`--recover` takes what `prunec recover` takes as options, as KEY=VALUE pairs; text with commas
(data from several sources) is what `--calibration` names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError
from prunec.recovery.options import RecoverOptions

if TYPE_CHECKING:
    from prunec.options.prune import PruneOptions

__all__ = ["parse_recovery", "parse_step", "round_problems", "shares"]

STEPS, PATIENCE, LOOKS = 200, 3, 10
"""Of a round by default: its steps; how many looks at held-out windows may be no better before it
ends; and into how many looks it is divided."""

KEYS = (
    "train", "rank", "top_k", "steps", "batch", "length", "samples", "lr", "save_every",
    "patience", "precision",
)  # fmt: skip
KINDS = {"int": int, "int | None": int, "float | None": float, "str": str}


def parse_step(text: str) -> float:
    """`15%` as 0.15; raises P811 (exit 2)."""
    number = text.removesuffix("%")
    try:
        value = float(number) / (100 if number != text else 1)
    except ValueError:
        value = math.nan
    if 0 < value < 1:
        return value
    raise PrunecError(
        [
            Diagnostic(
                "P811",
                f"--recover-every takes a share of the dense model, not {text!r}",
                "--recover-every",
                help="10% to 15% a round is usual",
            )
        ],
        Exit.USAGE,
    )


def parse_recovery(text: str, **given: Any) -> RecoverOptions:
    """Settled options of each round's recovery: `given`, and what `text` sets.

    Raises P810 and P811 (exit 2) with all mistakes.
    """
    chosen: dict[str, Any] = {"steps": STEPS, "patience": PATIENCE}
    problems: list[Diagnostic] = []
    kinds = {field.name: KINDS.get(str(field.type)) for field in fields(RecoverOptions)}
    for piece in filter(None, text.split(",")):
        key, _, value = (part.strip() for part in piece.partition("="))
        name = key.replace("-", "_")
        kind = kinds[name] if name in KEYS else None
        if kind is None:
            known = ", ".join(KEYS)
            problems.append(
                Diagnostic("P810", f"--recover does not know {key!r}", "--recover", help=known)
            )
            continue
        try:
            chosen[name] = kind(value)
        except ValueError:
            fact = f"--recover {key} takes a number, not {value!r}"
            problems.append(Diagnostic("P811", fact, "--recover", help="steps=200, say"))
    if problems:
        raise PrunecError(problems, Exit.USAGE)
    options = RecoverOptions(**given, **chosen)
    if "save_every" not in chosen:
        options = replace(options, save_every=max(1, options.steps // LOOKS))
    return options.settle()


def shares(target: float, step: float) -> tuple[float, ...]:
    """What remains after each round, in even steps of at most `step` down to `target`."""
    count = math.ceil((1 - target) / step - 1e-9)
    return tuple(1 - (1 - target) * (i + 1) / count for i in range(count))


def round_problems(options: PruneOptions) -> Iterator[Diagnostic]:
    """What keeps a run from being done in rounds; nothing when it need not be."""
    if not options.recover_every:
        if options.recover:
            fact = "--recover says how to recover between rounds, and there are none"
            yield Diagnostic("P815", fact, "--recover", help="add --recover-every 15%")
        return
    try:
        parse_step(options.recover_every)
        parse_recovery(options.recover, model=options.model, out=Path("x"), data="self")
    except PrunecError as error:
        yield from error.diagnostics
    if options.plan is not None or options.dry_run:
        what = "a given plan" if options.plan is not None else "a dry run"
        fact = f"{what} has no rounds: each is planned on what the one before has recovered"
        yield Diagnostic("P815", fact, "--recover-every", help="leave one of the two out")
    if any(target.unit != "fraction" for target in options.targets):
        fact = "rounds need targets as percentages"
        yield Diagnostic("P815", fact, "--target", help="--target params=60%, say")
