"""A gateway that has its answers checked by other servers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import httpx
import openai
import pytest

from swarm import Unavailable
from tests.openai_api.engine import AGREES, MODEL, WholeModel

pytestmark = pytest.mark.model
ASKED = {"model": MODEL, "prompt": "One two three", "max_tokens": 6, "temperature": 0}
LIES = replace(AGREES, differing=16, worst=9.0)


def test_an_answer_is_complete_once_others_agree_about_it(served: Callable[..., str], engine: WholeModel) -> None:
    url = served(engine, checks=2)
    plain = httpx.post(f"{url}/v1/completions", json=ASKED, timeout=60).json()["choices"][0]
    assert plain["text"] and plain["logprobs"] is None  # what the check compares is not shown
    assert len(engine.checked) == 2
    for stopped in ({"stop": ["four"], "max_tokens": 20}, {"n": 2}):
        engine.checked.clear()
        httpx.post(f"{url}/v1/completions", json=ASKED | stopped, timeout=60).raise_for_status()
        assert len(engine.checked) == 2 * int(str(stopped.get("n", 1)))
        assert all(None not in logprobs for _, logprobs in engine.checked)
    engine.checked.clear()
    httpx.post(f"{url}/v1/completions", json=ASKED | {"max_tokens": 0}, timeout=60).raise_for_status()
    assert not engine.checked
    events = httpx.post(f"{url}/v1/completions", json=ASKED | {"stream": True}, timeout=60).text.split("\n\n")
    verified = events.index(": verified with other servers of blocks 0:15, 0:15")
    assert not any('"length"' in event for event in events[:verified])
    assert any('"finish_reason":"length"' in event for event in events[verified:])


@pytest.mark.parametrize(
    ("verdict", "status", "message"),
    [(LIES, 502, "do not trust this answer.*0:15"), (Unavailable("there is no second server"), 503, "second server")],
)
def test_an_answer_that_does_not_pass_is_an_error(
    served: Callable[..., str], engine: WholeModel, verdict: object, status: int, message: str
) -> None:
    url = served(engine, checks=1)
    engine.verdict = verdict  # type: ignore[assignment]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError, match=message) as raised:
            client.completions.create(**ASKED)  # type: ignore[call-overload]
        assert raised.value.status_code == status
        with pytest.raises(openai.APIError, match=message):
            for chunk in client.completions.create(**ASKED, stream=True):  # type: ignore[call-overload]
                assert chunk.choices[0].finish_reason is None
