"""More clients than there is room for: each gets its whole answer, or is told to come back."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.kit.swarm import Program
from swarm import SwarmClient
from tests.fuzz.targets import started_directory, started_server
from tests.swarm.toy import VOCAB, greedy

CLIENTS = 300
ROOM = 16  # sessions
PROMPT, NEW = 8, 24
MB = 1 << 20


def prompt(number: int) -> list[int]:
    return [(number * (i + 3) + i) % VOCAB for i in range(PROMPT)]


async def ask(client: httpx.AsyncClient, number: int) -> tuple[int, list[int], str]:
    """Status, tokens, and `Retry-After`; every other answer is streamed."""
    body: dict[str, Any] = {"model": "toy", "prompt": prompt(number), "max_tokens": NEW, "return_token_ids": True}
    body |= {"temperature": 0, "stream": number % 2 == 1}
    tokens: list[int] = []
    async with client.stream("POST", "/v1/completions", json=body) as response:
        retry_after = response.headers.get("Retry-After", "")
        if response.status_code != 200 or not body["stream"]:
            content = json.loads(await response.aread())
            if response.status_code == 200:
                tokens = content["choices"][0]["token_ids"]
            else:
                assert content["error"]["code"] == "overloaded", content
            return response.status_code, tokens, retry_after
        ended = False
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                for choice in json.loads(line[6:])["choices"]:
                    tokens += choice.get("token_ids", [])
        assert ended
        return response.status_code, tokens, retry_after


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--at-once", "16", "--waiting", "300")], ids=["default", "in line"])
def test_many_clients_each_get_their_whole_answer_or_a_429(
    options: tuple[str, ...], tmp_path: Path, swarm_home: Path
) -> None:
    kv_tokens = ROOM * (PROMPT + NEW)
    with (
        started_directory(tmp_path) as (_, token),
        started_server(tmp_path, token, "0:3", kv_tokens) as head,
        started_server(tmp_path, token, "3:6", kv_tokens) as tail,
        SwarmClient(str(token)) as watcher,
    ):
        watcher.wait_complete("toy")
        program = Program(
            tmp_path, "gateway", "tests.fuzz.program", "gateway", "--port", "0", *options, SWARM_JOIN=str(token)
        )
        try:
            url = program.wait_for("ready")
            programs = (program, head, tail)

            async def crowd() -> list[tuple[int, list[int], str]]:
                limits = httpx.Limits(max_connections=None)
                async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
                    while not (await client.get("/health")).json()["complete"]:
                        await asyncio.sleep(0.05)
                    await ask(client, 0)
                    before.extend(each.stats.memory_info().rss for each in programs)
                    return await asyncio.gather(*(ask(client, number) for number in range(CLIENTS)))

            before: list[int] = []
            answers = asyncio.run(crowd())
            grown = [each.stats.memory_info().rss - at for each, at in zip(programs, before, strict=True)]
            assert all(each < 64 * MB for each in grown), grown

            statuses = Counter(status for status, _, _ in answers)
            assert set(statuses) <= {200, 429} and statuses[200] >= ROOM, statuses
            for number, (status, tokens, retry_after) in enumerate(answers):
                if status == 200:
                    assert tokens == greedy(prompt(number), NEW), number
                else:
                    assert int(retry_after) >= 1
            watcher._directory.wait_for(
                lambda view: all(s.load.sessions == 0 and s.load.kv_free == kv_tokens for s in view.servers.values()),
                30,
            )
        finally:
            program.stop()
