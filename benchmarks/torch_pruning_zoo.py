"""Torch-Pruning on the models of the zoo, beside prunec and by the same oracle.

For each model and role, the layers that make the units are asked one after the other to lose the
same third of them that `tools/coverage.py` takes: `get_pruning_group(layer, prune_out, indices)`
of Torch-Pruning's dependency graph, `check_pruning_group`, and `prune()`; layers that have become
smaller by then are left alone. Its model is then run and compared with the dense program in which
the same units are masked. Nothing is set by hand for a model: neither ignored layers nor numbers
of heads, since prunec is told nothing either. Outcomes: `equal` (to 1e-4 of the largest output;
its model sums in float32), `wrong` (other numbers), `nothing` (no parameter has left), `fails`
(an error, from it or from the model that it left behind), `stopped` (after --seconds).

Rows are kept in a file beside those of the zoo, from where `tools/coverage.py --write docs` takes
them as a column. Torch-Pruning 1.6.1 lives in a virtual environment of its own that sees this
one's packages (installed with pip from PyPI).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common import ROOT, Document, cache, main, parser, say
from rival_home import TORCH_PRUNING, torch_pruning

SEEN = (ROOT / "src", ROOT / "tools")


def run(arguments: Sequence[str] | None = None) -> Document:
    sys.path.insert(0, str(ROOT / "tools"))
    import coverage

    options = parser(__doc__)
    add = options.add_argument
    add("models", nargs="*", metavar="MODEL", help="model types [those with a traced row]")
    add("--state", type=Path, default=coverage.STATE, help="rows of the zoo [build/zoo.jsonl]")
    add("--seconds", type=int, default=30, help="of processor for a role [30]")
    add("--fresh", action="store_true", help="try again what was tried before")
    add("--cache", type=Path, help="folder for the environment [~/.cache/prunec/...]")
    asked = options.parse_args(arguments)
    state = asked.state.with_name(coverage.RIVAL)
    known = {} if asked.fresh else coverage.read(state)
    zoo = coverage.read(asked.state)
    traced = [kind for kind, row in zoo.items() if row["status"] == "traced"]
    wanted = [kind for kind in asked.models or traced if kind not in known]
    say(f"{TORCH_PRUNING} on {len(wanted)} models; {len(known)} were tried before")
    if wanted:
        command = (
            torch_pruning(cache(asked.cache)),
            Path(__file__).with_name("torch_pruning_rows.py"),
        )
        subprocess.run(
            [*map(str, command), str(state), str(asked.seconds), *wanted],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SEEN))},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            check=True,
        )
    rows = coverage.read(state)
    tried = [rows[kind]["roles"] for kind in asked.models or rows if "roles" in rows[kind]]
    outcomes = Counter(role["outcome"] for roles in tried for role in roles.values())
    whole = sum(all(role["outcome"] == "equal" for role in roles.values()) for roles in tried)
    return {
        "rival": TORCH_PRUNING,
        "state": str(state),
        "models": len(tried),
        "models_with_every_role_equal": whole,
        "roles": dict(outcomes),
    }


if __name__ == "__main__":
    main(run)
