"""What a short training gives back: SmolLM2 at 60 % of its blocks, and rounds against one shot.

Prunes with `auto` (per-layer), then trains the result in several ways, each for the same time
(--minutes, 20), and measures perplexity on two texts that nobody trained on, dense, pruned and
after: WikiText-2 test (training is on its valid part) and English prose from the documentation that
Python carries. The number of steps that fit is measured first, on a few; the peak of anonymous
memory tells what training block by block saves.

With --rounds also: 50 % of the blocks reached in rounds of 15 % with a recovery after each, against
pruning at once and one recovery with as many training tokens.

Promised: the best way closes at least half of the gap in log-perplexity to the dense model on the
first text and does not lose on the second.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common import (
    Document,
    Figure,
    command_line,
    data_file,
    figures,
    main,
    model,
    parser,
    prunec,
    say,
)
from common import run as measured

from prunec.frontends.prose import prose

WAYS: dict[str, tuple[str, ...]] = {
    "lora, kl": ("--train", "lora", "--loss", "kl"),
    "full, kl": ("--train", "full", "--loss", "kl"),
    "lora, ce": ("--train", "lora", "--loss", "ce"),
    "full, ce": ("--train", "full", "--loss", "ce"),
    "lora, blocks": ("--train", "lora", "--blockwise"),
    "full, blocks": ("--train", "full", "--blockwise"),
}
TRIAL = 4
"""Steps that tell how long one takes."""
CLOSED = 0.5


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--model", default="smollm2", help="a name or a folder [smollm2]")
    add("--share", default="60%", help="of the blocks that stay [60%%]")
    add("--minutes", type=float, default=20, help="of training for each way [20]")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    add("--method", default="auto", help="[auto]")
    add("--samples", type=int, default=64, metavar="N", help="windows to calibrate on [64]")
    add("--length", type=int, default=256, metavar="N", help="tokens of a training window [256]")
    add("--batch", type=int, default=8, metavar="N", help="windows of a step [8]")
    add("--precision", default="float32", help="float32 or bfloat16 [float32]")
    add("--max-windows", type=int, default=10, metavar="N", help="of each text, to measure [10]")
    add("--window", type=int, default=1024, metavar="N", help="tokens of one of them [1024]")
    add("--rounds", action="store_true", help="rounds against one shot as well")
    add("--train-data", type=Path, help="text to train on [wikitext2-valid.txt]")
    add("--test-data", type=Path, help="first text to measure on [wikitext2-test.txt]")
    add("--data-dir", type=Path, help="folder of the two texts [../shared/data]")
    asked = options.parse_args(arguments)
    asked.train_data = asked.train_data or data_file(asked.data_dir, "wikitext2-valid.txt")
    asked.test_data = asked.test_data or data_file(asked.data_dir, "wikitext2-test.txt")
    with tempfile.TemporaryDirectory(prefix="prunec-recovery-") as work:
        return _Bench(asked, Path(work)).run()


class _Bench:
    def __init__(self, asked: argparse.Namespace, work: Path) -> None:
        self.asked, self.work, self.dense = asked, work, model(asked.model)
        self.texts = {"wikitext": asked.test_data, "docs": work / "docs.txt"}
        self.texts["docs"].write_text(prose(), encoding="utf-8")

    def run(self) -> Document:
        small = self.work / "small"
        self._prune(small, self.asked.share)
        dense, pruned = self._quality(self.dense), self._quality(small)
        rows = [self._way(name, small, dense, pruned) for name in self.asked.ways]
        best = max(rows, key=lambda row: float(row["closed"]["wikitext"]))
        found: Document = {"dense": dense, "pruned": pruned, "rows": rows, "best": best["way"]}
        if self.asked.rounds:
            found["rounds"] = self._rounds()
        return found | {
            "figures": figures(
                Figure("closed on the first text", best["closed"]["wikitext"], least=CLOSED),
                Figure("closed on the second text", best["closed"]["docs"], least=0.0),
            )
        }

    def _prune(self, out: Path, share: str, *further: str) -> Document:
        asked = self.asked
        command = prunec(
            *("prune", self.dense, "-o", out, "--target", f"blocks={share}"),
            *("--method", asked.method, "--layout", "per-layer", "--json"),
            *("--calibration", asked.train_data, "--calibration-samples", str(asked.samples)),
            *further,
        )
        say(command_line(command))
        finished = measured(command).expect(0)
        return finished.json() | {"wall_seconds": finished.seconds}

    def _way(self, name: str, small: Path, dense: Document, pruned: Document) -> Document:
        trial = self._recover(small, self.work / "trial", TRIAL, *WAYS[name])
        steps = max(TRIAL, int(60 * self.asked.minutes / (trial["seconds"]["train"] / TRIAL)))
        out = self.work / name.replace(", ", "-")
        report = self._recover(small, out, steps, *WAYS[name])
        after = self._quality(out)
        kept = (
            "lr", "steps", "best_step", "tokens", "trained", "before", "after", "seconds",
            "peak_anonymous_MB",
        )  # fmt: skip
        return {
            "way": name,
            "perplexity": after,
            "closed": {text: _closed(dense[text], pruned[text], after[text]) for text in after},
            **{key: report[key] for key in kept},
        }

    def _recover(self, small: Path, out: Path, steps: int, *further: str) -> Document:
        asked = self.asked
        command = prunec(
            *("recover", small, "-o", out, "--teacher", self.dense, "--data", asked.train_data),
            *("--steps", str(steps), "--batch", str(asked.batch), "--length", str(asked.length)),
            *("--save-every", str(max(1, steps // 10)), "--precision", asked.precision),
            *("--overwrite", "--json", *further),
        )
        say(command_line(command))
        finished = measured(command).expect(0)
        anonymous = finished.peak_anonymous
        return finished.json() | {"peak_anonymous_MB": anonymous and round(anonymous / 1e6)}

    def _quality(self, folder: Path) -> Document:
        """Perplexity on each text."""
        asked = self.asked
        found = {}
        for name, text in self.texts.items():
            inner = folder / "hf"
            command = prunec(
                *("eval", inner if inner.is_dir() else folder, "--data", text, "--json"),
                *("--max-windows", str(asked.max_windows), "--window", str(asked.window)),
            )
            found[name] = measured(command).expect(0).json()["rows"][0]["perplexity"]
        say(f"{folder.name}: {found}")
        return found

    def _rounds(self) -> Document:
        """Half of the blocks, in rounds and at once, with equal training tokens."""
        asked = self.asked
        trial = self._recover(self.work / "small", self.work / "trial", TRIAL, *WAYS["full, kl"])
        fit = max(8, int(60 * asked.minutes / (trial["seconds"]["train"] / TRIAL)))
        each = fit // 4  # 50 % in steps of at most 15 % are four rounds
        rounds, once = self.work / "rounds", self.work / "once"
        told = self._prune(
            *(rounds, "50%", "--recover-every", "15%", "--recover"),
            f"train=full,steps={each},batch={asked.batch},length={asked.length},"
            f"patience={each},precision={asked.precision}",
        )
        tokens = sum(row["tokens"] for row in told["notes"]["rounds"])
        self._prune(once, "50%")
        steps = tokens // (asked.batch * asked.length)
        healed = self.work / "healed"
        self._recover(once, healed, steps, *WAYS["full, kl"])
        return {
            "tokens": tokens,
            "rounds": self._quality(rounds),
            "once": self._quality(healed),
            "losses": told["notes"]["rounds"],
        }


def _closed(dense: float, pruned: float, after: float) -> float:
    """The share of the gap in log-perplexity that is gone; 0 where there is none."""
    gap = math.log(pruned / dense)
    return math.log(pruned / after) / gap if gap else 0.0


if __name__ == "__main__":
    main(run)
