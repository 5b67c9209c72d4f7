"""Open a page in headless Chromium, as a reader does who has no network: what it asks for, what it
complains of, how wide it becomes, and pictures of it.

    python tools/browser.py small/report.html --out shots              at 1280 and at 400 pixels
    python tools/browser.py small/report.html --out shots --dark --widths 800

Prints one JSON document. Exits with 1 when the page asked for anything beside itself, wrote to the
console, or is wider than the window. Chromium is driven over a pipe, so that no port is opened.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

__all__ = ["View", "chromium", "look"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
WIDTHS = (1280, 400)
TALL = 900
COMPLAINTS = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}

OPEN_ALL = "document.querySelectorAll('details').forEach(d => { d.open = true; })"
MEASURE = """(() => {
  const width = window.innerWidth;
  const over = [...document.querySelectorAll('body *')].filter(e =>
    !e.closest('.scroll, pre') && e.getBoundingClientRect().right > width + 1);
  return {
    text: document.body.innerText,
    wide: document.documentElement.scrollWidth,
    over: over.slice(0, 5).map(e => e.outerHTML.slice(0, 120)),
  };
})()"""
"""What is visible, and what reaches out of the window."""


@dataclass(frozen=True)
class View:
    """The page at one width: addresses that it asked for beside its own, messages of the console,
    pixels that it takes, elements that reach out of the window, its visible text, its picture."""

    width: int
    requests: tuple[str, ...]
    messages: tuple[str, ...]
    wide: int
    over: tuple[str, ...]
    text: str
    picture: bytes

    @property
    def sound(self) -> bool:
        return not (self.requests or self.messages or self.over) and self.wide <= self.width


def chromium() -> str | None:
    """The program, where there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def look(
    *pages: Path, widths: Sequence[int] = WIDTHS, dark: bool = False, unfold: bool = False
) -> list[View]:
    """Each page at each width; `unfold` opens everything that can be opened before."""
    with _tab() as tab:
        for domain in ("Page", "Network", "Runtime", "Log"):
            tab.call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        return [_view(tab, page.resolve().as_uri(), w, unfold) for page in pages for w in widths]


def _view(tab: Tab, address: str, width: int, unfold: bool) -> View:
    tab.heard.clear()
    size = {"width": width, "height": TALL, "deviceScaleFactor": 1, "mobile": False}
    tab.call("Emulation.setDeviceMetricsOverride", **size)
    tab.call("Page.navigate", url=address)
    tab.wait("Page.loadEventFired")
    if unfold:
        tab.call("Runtime.evaluate", expression=OPEN_ALL)
    found = tab.call("Runtime.evaluate", expression=MEASURE, returnByValue=True)["result"]["value"]
    shot = tab.call("Page.captureScreenshot", captureBeyondViewport=True)
    asked = [e["params"]["request"]["url"] for e in tab.told("Network.requestWillBeSent")]
    return View(
        width,
        tuple(url for url in asked if url != address),
        tuple(json.dumps(e["params"])[:500] for e in tab.heard if e["method"] in COMPLAINTS),
        found["wide"],
        tuple(found["over"]),
        found["text"],
        base64.b64decode(shot["data"]),
    )


class Tab:
    """One page of a browser: calls and their answers, and the events heard meanwhile."""

    def __init__(self, orders: int, answers: int) -> None:
        self.orders = os.fdopen(orders, "wb", buffering=0)
        self.answers = os.fdopen(answers, "rb")
        self.count = 0
        self.session: str | None = None
        self.heard: list[dict[str, Any]] = []
        self.rest = b""

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        order = {"id": self.count, "method": method, "params": params}
        if self.session is not None:
            order["sessionId"] = self.session
        self.orders.write(json.dumps(order).encode() + b"\0")
        while (answer := self._next()).get("id") != self.count:
            self.heard.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def wait(self, method: str) -> None:
        while not self.told(method):
            self.heard.append(self._next())

    def told(self, method: str) -> list[dict[str, Any]]:
        return [event for event in self.heard if event.get("method") == method]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            more = self.answers.read1(1 << 20)
            if not more:
                raise RuntimeError("Chromium has ended")
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


@contextmanager
def _tab() -> Iterator[Tab]:
    """An empty page in a browser with a profile of its own, which ends with the block."""
    program = chromium()
    if program is None:
        raise SystemExit("no Chromium: apt-get install chromium")
    (read, orders), (answers, write) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # it reads from 3 and writes to 4; plain sh knows no descriptors of two digits
        line = ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash", program, *FLAGS]
        process = subprocess.Popen(
            [*line, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(read, write), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read)
        os.close(write)
        tab = Tab(orders, answers)
        try:
            made = tab.call("Target.createTarget", url="about:blank")
            joined = tab.call("Target.attachToTarget", targetId=made["targetId"], flatten=True)
            tab.session = joined["sessionId"]
            yield tab
        finally:
            process.terminate()
            process.wait(30)
            tab.orders.close()
            tab.answers.close()


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("page", type=Path)
    options.add_argument("--out", type=Path, help="folder for the pictures")
    options.add_argument("--widths", type=int, nargs="+", default=WIDTHS, metavar="PIXELS")
    options.add_argument("--dark", action="store_true")
    options.add_argument("--unfold", action="store_true", help="open every detail before")
    asked = options.parse_args()
    views = look(asked.page, widths=asked.widths, dark=asked.dark, unfold=asked.unfold)
    for view in views if asked.out else ():
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / f"{asked.page.stem}-{view.width}.png").write_bytes(view.picture)
    shortened = [replace(view, text=f"{len(view.text)} characters", picture=b"") for view in views]
    print(json.dumps([asdict(view) for view in shortened], default=len, indent=1))
    return 0 if all(view.sound for view in views) else 1


if __name__ == "__main__":
    sys.exit(main())
