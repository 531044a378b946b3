"""Answers that follow a grammar, through real servers: one that is lost on the way changes no token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swarm import BadRequest, SwarmClient
from swarm.grammar import of_schema
from tests.e2e.programs import Swarm
from tests.e2e.test_failures import serving

MODEL = "smollm2-135m"
LIST = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 999}, "minItems": 12, "maxItems": 12}


@pytest.mark.model
def test_a_tail_that_is_lost_changes_no_token_of_a_constrained_answer(smollm2: Path, swarm_home: Path) -> None:
    with Swarm(swarm_home) as swarm:
        options = ["--dtype", "float32", "--model-name", MODEL, "--kv-tokens", "1024"]
        swarm.serve(smollm2, "0:15", "15:30", "15:30", options=options)
        with SwarmClient(swarm.token) as client:
            tokenizer = client.tokenizer(MODEL)
            assert tokenizer is not None
            prompt = tokenizer.encode("Twelve numbers: ")

            def answer(lose: bool) -> list[int]:
                tokens = []
                with client.session(MODEL, 200) as session:
                    for token in session.stream(
                        prompt, 150, temperature=1.2, top_p=0.95, seed=11, grammar=of_schema(LIST)
                    ):
                        tokens.append(token)
                        if lose and len(tokens) == 15:
                            serving(swarm, client, session, 1).kill()
                    assert any("was lost" in notice for notice in session.notices) == lose
                return tokens

            whole = answer(lose=False)
            numbers = json.loads(tokenizer.decode(whole))
            assert len(numbers) == 12 and all(0 <= number <= 999 for number in numbers)
            assert whole[-1] in tokenizer.stop_ids  # although none was asked for
            assert answer(lose=True) == whole

            with client.session(MODEL, 64) as session, pytest.raises(BadRequest, match="nowhere"):
                list(session.stream(prompt, 10, grammar="start: nowhere"))
            assert client.generate(MODEL, "The capital of France is", 2, grammar="start: / Paris| Rome/") == " Paris"
