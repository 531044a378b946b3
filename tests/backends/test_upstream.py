"""The backend `petals`, in its own environment; models and right answers come from this one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from backends import BackendError, registry
from tests.backends.conftest import MakeModel
from tests.families import VOCABULARY, WIDTH, make_model, reference_model, reference_tokens
from tests.upstream import ROOT, petals_python

PROMPTS = [
    [(7 * i + 3) % 500 + 5 for i in range(20)],
    [11, 480, 97],
    [(13 * i * i + 5) % 500 + 5 for i in range(11)],
]
NEW = 20
ARCHITECTURES = {"llama": "LlamaForCausalLM", "bloom": "BloomForCausalLM"}
TIED = {"tie_word_embeddings": True}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_tied": ("llama", TIED),
    "llama_rope": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}),
    "bloom": ("bloom", {}),
    "falcon": ("falcon", {"multi_query": False}),
    "falcon_alibi": ("falcon_alibi", {"multi_query": False}),
    "falcon_new": ("falcon_new", {}),
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [petals_python(), "-W", "ignore", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)


@pytest.mark.parametrize("case", FAMILIES)
def test_spans_of_a_family_give_the_tokens_of_the_whole_model(case: str, tmp_path: Path) -> None:
    import torch

    petals_python()
    family, changes = FAMILIES[case]
    folder = make_model(family, tmp_path / case, **changes)
    tokens = [reference_tokens(folder, prompt, NEW) for prompt in PROMPTS]
    with torch.inference_mode():
        logits = reference_model(folder)(torch.tensor([PROMPTS[0] + tokens[0]])).logits[0]
    described = [ARCHITECTURES.get(family, "FalconForCausalLM"), 6, WIDTH, VOCABULARY, "float32"]
    expected = {"prompts": PROMPTS, "tokens": tokens, "logits": logits.tolist(), "described": described}
    (folder / "expected.json").write_text(json.dumps(expected))
    done = run("-m", "tests.backends.upstream_chain", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["described", "tokens", "sub-ranges", "memory", "bfloat16"]


REFUSED = {
    "qwen2": ("qwen2", {}, "knows Llama, BLOOM and Falcon, not 'qwen2'"),
    "llama3 rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 5e5,
            }
        },
        "rotary embeddings of type 'llama3'",
    ),
    "one key head": ("falcon", {}, "one key head for all query heads"),
    "biases": ("llama", {"attention_bias": True}, "attention_bias"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_upstream_would_compute_wrongly_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    petals_python()
    family, changes, reason = REFUSED[case]
    folder = make_model(family, tmp_path / "model", **changes)
    code = (
        "import sys; from backends import BackendError, registry\n"
        "try: registry.find('petals').describe(sys.argv[1])\n"
        "except BackendError as error: print(error)"
    )
    done = run("-c", code, str(folder))
    assert reason in done.stdout, done.stdout + done.stderr[-2000:]


def test_without_upstream_the_backend_says_how_to_get_it(model_of: MakeModel) -> None:
    pytest.importorskip("torch")
    try:
        import petals  # noqa: F401
    except ImportError:
        with pytest.raises(BackendError, match=r"python bootstrap\.py petals"):
            registry.find("petals").describe(model_of("llama"))
