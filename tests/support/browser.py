"""A real Chromium, and what every page must keep to while a test looks at it.

Whatever a test does, at its end nothing may have been written to the console, thrown, blocked by the page's own
Content-Security-Policy, or asked of another server. A test that cuts the service off names the words that it expects.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from support.require import require

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")  # as make programs looks for them
ARGUMENTS = (
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP calibrator.test 127.0.0.1",  # a name that no browser trusts as it trusts localhost
)
LIMIT_MS = 120_000.0
SEVERE = {"serious", "critical"}

# Lets the page's violations be heard before any of its own scripts runs.
_LISTEN = """
document.addEventListener("securitypolicyviolation", (event) =>
  reportViolation(`${event.violatedDirective}: ${event.blockedURI}`));
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    found = next((path for path in map(shutil.which, PROGRAMS) if path is not None), None)
    require("Chromium", found=found is not None, remedy="make programs")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watched:
    """What happened while a page was looked at."""

    page: Page
    host: str
    faults: list[str] = field(default_factory=list)

    def open(self, path: str = "/") -> None:
        self.page.goto(path)

    def wait_until_live(self) -> None:
        self.page.locator("#live.on").wait_for()

    def on_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.faults.append(f"console: {message.text}")

    def on_request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in {"http", "https", "ws", "wss"} and parts.netloc != self.host:
            self.faults.append(f"request to another server: {request.url}")

    def severe_findings(self) -> list[str]:
        """Of axe-core, which judges names, roles, contrast, landmarks and more."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{one['id']}: {node['html']} {node['failureSummary']}"
            for one in found
            if one["impact"] in SEVERE
            for node in one["nodes"]
        ]

    def layout_faults(self) -> list[str]:
        faults: list[str] = self.page.evaluate(_LAYOUT)
        return faults


@contextmanager
def watched(
    browser: Browser,
    url: str,
    *,
    dark: bool = False,
    width: int = 1200,
    scripts: bool = True,
    expected: str = "",
) -> Iterator[Watched]:
    """A page in a browser profile of its own. `expected`: a pattern of faults that belong to the test."""
    context = browser.new_context(
        base_url=url,
        viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
        java_script_enabled=scripts,
    )
    context.set_default_timeout(LIMIT_MS)
    looked_at = Watched(context.new_page(), urlsplit(url).netloc)
    page, faults = looked_at.page, looked_at.faults
    context.expose_binding("reportViolation", lambda _source, words: faults.append(f"policy violation: {words}"))
    context.add_init_script(_LISTEN)
    page.on("console", looked_at.on_console)
    page.on("pageerror", lambda error: faults.append(f"script failed: {error}"))
    page.on("request", looked_at.on_request)
    try:
        yield looked_at
        unexpected = [fault for fault in faults if not expected or not re.search(expected, fault)]
        assert not unexpected, unexpected
    finally:
        context.close()


# Gross faults: wider than the window, cards one over another, text cut off by its box, an empty canvas.
_LAYOUT = """
() => {
  const faults = [];
  const name = (element) => `${element.tagName}.${element.className?.baseVal ?? element.className} ` +
    (element.textContent ?? "").trim().slice(0, 40);
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) faults.push(`the page is ${wide} wide in a window of ${innerWidth}`);
  const scrolls = (element) => element.closest(".wide, .picture, .unseen, .skip, noscript") !== null;
  for (const element of document.body.querySelectorAll("*")) {
    const box = element.getBoundingClientRect();
    if (box.width === 0 || scrolls(element) || !element.checkVisibility()) continue;
    if (box.right > innerWidth + 1 || box.left < -1) faults.push(`outside the window: ${name(element)}`);
    if (element.matches("p, dd, h1, h2, li, button") && element.scrollWidth > element.clientWidth + 1)
      faults.push(`cut off: ${name(element)}`);
  }
  const cards = [...document.querySelectorAll(".card, figure")].map((card) => [card, card.getBoundingClientRect()]);
  cards.forEach(([one, a], index) => {
    for (const [other, b] of cards.slice(index + 1)) {
      const isApart = a.right <= b.left + 1 || b.right <= a.left + 1 || a.bottom <= b.top + 1 || b.bottom <= a.top + 1;
      if (!isApart) faults.push(`over one another: ${name(one)} and ${name(other)}`);
    }
  });
  for (const canvas of document.querySelectorAll("canvas")) {
    const { width, height } = canvas;
    const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const pixels = new Uint32Array(copy.getImageData(0, 0, width, height).data.buffer);
    if (new Set(pixels).size < 5) faults.push("an empty canvas");
  }
  return faults;
}
"""
