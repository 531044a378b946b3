"""A GGUF file made into a folder of safetensors, once, so that a span can be read without reading the rest.

    python -m backends.huggingface.convert [--tokenizer] SOURCE TARGET

runs as a process of its own, so that the memory of the whole model goes back to the system.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from backends.stage import BackendError
from backends.torch_net.net import first_line

# Splitting of text before BPE that transformers does not take over from the GGUF. SmolLM reads numbers digit by digit:
# `tokenizer.json` of HuggingFaceTB/SmolLM2-135M-Instruct, and LLAMA_VOCAB_PRE_TYPE_SMOLLM of llama.cpp.
_PRE_TOKENIZERS = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    ),
}


def convert_gguf(source: Path, target: Path) -> None:
    """Write the model in `source` to the folder `target`: bfloat16 weights, configuration, tokenizer, chat template.

    Quantised tensors are expanded to float32 and rounded once to bfloat16; nothing is gained back of what the
    quantisation lost.

    Args:
        source: a GGUF file, or a folder that holds exactly one.
        target: is made; must be empty where it exists.

    Raises:
        BackendError: no GGUF there, or one that transformers cannot read.
    """
    file = _only_gguf(source)
    reader = gguf.GGUFReader(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),  # otherwise the weights stay packed and cannot be saved
            local_files_only=True,
        )
    except (ValueError, KeyError, OSError) as error:
        raise BackendError(f"{file.name} cannot be converted: {error}") from error
    model.save_pretrained(str(target))
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(str(target))
    _mend_tokenizer(target, _text(reader, "tokenizer.ggml.pre"))
    _mend_config(target / "config.json")
    _mend_config(target / "tokenizer_config.json")
    _write_generation_config(target, model.config)


def convert_tokenizer(source: Path, target: Path) -> None:
    """Write what a model's clients need, and none of its weights: configuration, tokenizer, chat template.

    Raises:
        BackendError: transformers cannot read it.
    """
    file = _only_gguf(source)
    pre = _text(gguf.GGUFReader(file), "tokenizer.ggml.pre")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
        config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
    except (ValueError, KeyError, OSError, NotImplementedError) as error:
        raise BackendError(
            f"{file.name}: transformers cannot read its tokenizer ({first_line(error)}); put config.json and "
            "tokenizer.json of the model beside the file"
        ) from error
    config.save_pretrained(str(target))
    tokenizer.model_max_length = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    tokenizer.save_pretrained(str(target))
    _mend_tokenizer(target, pre)
    _mend_config(target / "config.json")
    _mend_config(target / "tokenizer_config.json")
    _write_generation_config(target, config)


def _only_gguf(source: Path) -> Path:
    files = [source] if source.is_file() else sorted(source.glob("*.gguf"))
    if len(files) != 1:
        raise BackendError(f"{source} must be a GGUF file, or a folder with one in it; it has {len(files)}")
    return files[0]


def _text(reader: gguf.GGUFReader, key: str) -> str:
    field = reader.get_field(key)
    return str(field.contents()) if field is not None else ""


def _mend_tokenizer(target: Path, pre: str) -> None:
    if pre in _PRE_TOKENIZERS:
        tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
        tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]()
        tokenizer.save(str(target / "tokenizer.json"))


def _mend_config(path: Path) -> None:
    """Undo what the way through GGUF did to a configuration: traces of the file, and floats widened from float32."""
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key in ("_name_or_path", "_model_name_or_path", "quantization_config", "is_local", "local_files_only"):
        config.pop(key, None)
    for key, value in config.items():
        if isinstance(value, float):
            config[key] = float(str(np.float32(value)))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_generation_config(target: Path, config: Any) -> None:
    """The tokens at which generation stops; what the library adds of its own would only shadow later settings."""
    ids = {key: getattr(config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    known = {key: value for key, value in ids.items() if value is not None}
    (target / "generation_config.json").write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    convert = convert_tokenizer if arguments[:1] == ["--tokenizer"] else convert_gguf
    paths = [Path(argument) for argument in arguments if argument != "--tokenizer"]
    if len(paths) != 2:
        print("usage: python -m backends.huggingface.convert [--tokenizer] SOURCE TARGET", file=sys.stderr)
        return 2
    try:
        convert(*paths)
    except BackendError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
