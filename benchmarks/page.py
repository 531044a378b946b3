"""The time of a word from the gateway to the screen: the built page in a real browser, before a real swarm.

    python -m benchmarks.page [--runs 20] [--json FILE]

The gateway runs in this process, so that it can note when the first token of an answer reaches it. The page notes, by
the same clock, when the first words are read from the response, when they stand in the document, and when the frame
with them has been drawn.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import click
import psutil
from playwright.sync_api import Page, expect, sync_playwright
from rich.console import Console
from rich.table import Table

from backends import registry
from benchmarks.kit.swarm import BenchmarkSwarm, machine_facts
from openai_api.app import AppSettings, create_app
from openai_api.gateway import Gateway
from openai_api.http import static_site
from openai_api.http.server import HttpServer, listen, url_of
from openai_api.routes.state import GatewayState
from routing import wire
from swarm import AsyncSwarmClient, Notice, Sampling
from swarm.cli.programs.up import split_evenly
from swarm.errors import SwarmError
from swarm.models import resolve
from swarm.system.process import user_errors

PATIENCE = 120_000  # ms for an answer
STEPS = ("in the page", "in the document", "on the screen")
# Whatever comes to the page passes `read`; a frame is drawn between its animation callbacks and the next task.
STOPWATCH = """
  window.seen = [];
  const now = () => performance.timeOrigin + performance.now();
  const read = ReadableStreamDefaultReader.prototype.read;
  ReadableStreamDefaultReader.prototype.read = async function (...rest) {
    const result = await read.apply(this, rest);
    if (!window.seen.length && result.value && /"content":"[^"]/.test(new TextDecoder().decode(result.value))) {
      window.seen.push(now());
    }
    return result;
  };
  new MutationObserver(() => {
    const words = document.querySelector(".message.assistant .words");
    if (window.seen.length !== 1 || !words?.textContent.trim()) return;
    window.seen.push(now());
    requestAnimationFrame(() => {
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () => window.seen.push(now());
      port2.postMessage("");
    });
  }).observe(document, { subtree: true, childList: true, characterData: true });
"""


class TimingClient(AsyncSwarmClient):
    """A client that notes when tokens come.

    Attributes:
        first: when the first token of the newest answer came, in ms since the epoch.
    """

    first = 0.0

    async def stream(
        self,
        model: str,
        input_ids: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling | None = None,
        max_length: int | None = None,
    ) -> AsyncIterator[wire.Token | Notice]:
        """Stream as the client does, and note the first token's time."""
        self.first = 0.0
        steps: Any = super().stream(model, input_ids, max_new_tokens, sampling, max_length)
        async with aclosing(steps):
            async for step in steps:
                if isinstance(step, wire.Token):
                    self.first = self.first or time.time() * 1000
                yield step


@contextmanager
def gateway(client: TimingClient) -> Iterator[str]:
    """A gateway in a thread of this process; its URL."""
    stop, ready = threading.Event(), threading.Event()

    async def serve() -> None:
        closing = asyncio.Event()
        app = create_app(GatewayState.make(Gateway(client), closing=closing), AppSettings(site=static_site.load()))
        await HttpServer(app, stop.is_set, closing, ready.set).serve(sockets=[listener])
        await client.close()

    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        try:
            ready.wait()
            yield url_of("127.0.0.1", listener)
        finally:
            stop.set()
            thread.join()


def measured(page: Page, client: TimingClient) -> list[float]:
    """Ask; ms from the token's arrival at the gateway to each of `STEPS`."""
    page.evaluate("window.seen.length = 0")
    page.get_by_role("textbox", name="Message").fill("What is the capital of France?")
    page.keyboard.press("Enter")
    limit = time.monotonic() + PATIENCE / 1000
    while page.evaluate("window.seen.length") < len(STEPS):
        assert time.monotonic() < limit, "no words came"
        page.wait_for_timeout(50)
    page.keyboard.press("Escape")  # the rest of the answer does not matter
    expect(page.get_by_role("button", name="Answer again")).to_be_attached(timeout=PATIENCE)
    return [seen - client.first for seen in page.evaluate("window.seen")]


def figures(first: list[float], later: list[list[float]]) -> list[dict[str, Any]]:
    """Medians and extremes of the measured times, in ms."""
    columns = zip(STEPS, first, zip(*later, strict=True), strict=True)
    return [
        {"to": step, "first": cold, "median": statistics.median(warm), "worst": max(warm)}
        for step, cold, warm in columns
    ]


@click.command(help="From the first token at the gateway to the screen of a browser, in ms.")
@click.option("--model", default="smollm2-135m", show_default=True, help="Folder, repo id or catalogue name.")
@click.option("--servers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=20, show_default=True)
@click.option("--browser", "program", default=lambda: shutil.which("chromium"), help="Chromium.  [default: in PATH]")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures there.")
def main(model: str, servers: int, runs: int, program: str | None, json_file: Path | None) -> None:
    """Measure the built page in a browser, and print where the time goes."""
    with user_errors(), tempfile.TemporaryDirectory() as scratch:
        found = resolve.resolve(model)
        if program is None or not (static_site.STATIC / "app" / "index.html").is_file():
            raise SwarmError("this needs Chromium (--browser) and the built page (python bootstrap.py install)")
        busy = psutil.cpu_percent(1.0)
        spans = split_evenly(registry.find(registry.DEFAULT).describe(found.path).blocks, servers)
        with BenchmarkSwarm(Path(scratch)) as swarm, sync_playwright() as driver:
            swarm.add(found.name, found.path, spans)
            client = TimingClient(swarm.join, name="gateway")
            with gateway(client) as url, driver.chromium.launch(executable_path=program) as browser:
                page = browser.new_page()
                page.goto(url)
                page.evaluate(STOPWATCH)
                page.get_by_role("heading", name="What would you like to know?").wait_for()
                taken = []
                for number in range(1, runs + 2):
                    taken.append(measured(page, client))
                    expect(page.locator(".chats .chat")).to_have_count(number)
                    page.get_by_role("button", name="New chat").click()
    rows = figures(taken[0], taken[1:])
    table = Table(title=f"{found.name}, {servers} servers, ms from the token's arrival at the gateway, {runs} answers")
    for title in ("", "first answer", "median of the others", "worst"):
        table.add_column(title, justify="right" if title else "left")
    for row in rows:
        table.add_row(row["to"], *(f"{row[name]:.1f}" for name in ("first", "median", "worst")))
    Console().print(table)
    if json_file:
        content = {"machine": {**machine_facts(), "busy_before": busy}, "runs": taken, "figures": rows}
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
