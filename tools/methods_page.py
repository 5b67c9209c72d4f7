"""Write what docs/methods.md says of presets, from `prunec.passes.methods.PRESETS`.

python tools/methods_page.py           rewrite the part between the two marks
python tools/methods_page.py --check   exit code 1 when it is not what it should be
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from prunec.passes.methods import PRESETS, Method

__all__ = ["PAGE", "rendered", "section"]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
BEGIN = "<!-- presets: written by tools/methods_page.py -->"
END = "<!-- end of presets -->"
WIDTH = 100


def section(presets: Mapping[str, Method] = PRESETS) -> str:
    """A table of the parts, then where each preset comes from and what departs from it."""
    lines = ["| preset | criterion | allocate | restore |", "|---|---|---|---|"]
    for name, method in presets.items():
        cells = (name, method.criterion, method.allocate, method.restore)
        lines.append(f"| {' | '.join(f'`{cell}`' for cell in cells)} |")
    for name, method in presets.items():
        lines += ["", _filled(f"- `{name}`: {method.title} {method.source}")]
    return "\n".join(lines)


def _filled(text: str) -> str:
    return textwrap.fill(
        text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def rendered(page: str) -> str:
    """The page with the part between the marks written anew."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE} lacks a line {BEGIN!r} or {END!r}")
    return f"{before}{BEGIN}\n\n{section()}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    asked = parser.parse_args(arguments)
    page = PAGE.read_text(encoding="utf-8")
    wanted = rendered(page)
    if asked.check:
        return int(page != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
