"""A model folder: its configuration, and where each tensor lies in its safetensors files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.checkpoint.headers import INDEX, SINGLE, StoredTensor, read_header, read_index, read_json
from backends.stage import BackendError

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


@dataclass
class ModelFolder:
    """A model folder whose configuration and index have been read; shards are opened as they are asked for."""

    path: Path
    config: dict[str, Any]
    weight_map: dict[str, str]
    _headers: dict[str, dict[str, StoredTensor]] = field(default_factory=dict)

    def header(self, shard: str) -> dict[str, StoredTensor]:
        """The tensors of one shard.

        Raises:
            BackendError: the shard is missing, cut short or not a safetensors file.
        """
        if shard not in self._headers:
            self._headers[shard] = read_header(self.path / shard)
        return self._headers[shard]

    def tensor(self, name: str) -> StoredTensor:
        """One tensor of the index.

        Raises:
            BackendError: as `header`, or the shard does not hold what the index says.
        """
        shard = self.weight_map[name]
        try:
            return self.header(shard)[name]
        except KeyError:
            raise BackendError(
                f"{INDEX} says that {name} is in {shard}, but it is not; download the model {self.path} again"
            ) from None

    def stored_dtype(self, names: list[str]) -> str:
        """The floating point dtype that most bytes of these tensors have, e.g. `bfloat16`.

        Raises:
            BackendError: most of them are stored in a format that is not plain floating point.
        """
        sizes: dict[str, int] = {}
        for name in names:
            tensor = self.tensor(name)
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
        most = max(sizes, key=lambda dtype: sizes[dtype]) if sizes else "F32"
        if most not in DTYPES:
            raise BackendError(
                f"{self.path} is stored as {most}, which this backend cannot compute with; "
                "take the unquantised model (float32, bfloat16 or float16)"
            )
        return DTYPES[most]


def read(path: Path) -> ModelFolder:
    """Read a model folder's configuration and the names of its tensors.

    Raises:
        BackendError: there is no model there, or not one in safetensors files.
    """
    if not path.is_dir():
        raise BackendError(f"{path} is not a folder; give a model folder with config.json and *.safetensors")
    return ModelFolder(path, _read_config(path), *_read_names(path))


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise BackendError(f"{path} has no config.json, so it is not a model folder of Hugging Face format")
    config = read_json(file)
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise BackendError(
            f"{path} holds quantised weights ({method}); take the unquantised model and ask for --quantize instead"
        )
    return config


def _read_names(path: Path) -> tuple[dict[str, str], dict[str, dict[str, StoredTensor]]]:
    index = read_index(path)
    if index is not None:
        return index, {}
    # `consolidated*` are the same weights again, in their maker's own naming.
    single = path / SINGLE
    shards = [single] if single.is_file() else sorted(path.glob("*.safetensors"))
    shards = [shard for shard in shards if not shard.name.startswith("consolidated")]
    if not shards:
        raise BackendError(_no_weights(path))
    headers = {shard.name: read_header(shard) for shard in shards}
    return {name: shard for shard, tensors in headers.items() for name in tensors}, headers


def _no_weights(path: Path) -> str:
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        return (
            f"{path} holds its weights only as pickle files (*.bin), which can run any code when they are opened, so "
            "this program never opens them; take or convert the model to safetensors"
        )
    if any(path.glob("*.gguf")):
        return f"{path} holds a GGUF file and no *.safetensors; use --backend llama_cpp for it"
    return f"{path} has no *.safetensors files; the download may not have finished"
