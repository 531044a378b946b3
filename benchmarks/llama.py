"""llama.cpp by itself, in processes of its own: the whole model, also with a part of it on llama.cpp's RPC server.

    python -m benchmarks.llama generate FILE.gguf --threads 1 [--remote 12 --rpc 127.0.0.1:50052 [--rpc ...]]
    python -m benchmarks.llama serve 127.0.0.1:50052 --threads 1

`generate` says `ready: ...`, then answers each line of JSON (`{"ids": [...], "tokens": 64}`) with another
(`{"tokens": [...], "times": [...]}`, in seconds from the request). RPC needs a llama.cpp that was built with
`-DGGML_RPC=ON`.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from backends.llamacpp import resolve as llamacpp_models
from backends.llamacpp.engine import LlamaEngine, LlamaModel
from backends.llamacpp.library import Library, library

_NAMES = ("libggml-rpc.so", "libggml-rpc.dylib", "ggml-rpc.dll")


def has_rpc(lib: Library) -> bool:
    """Whether this build has llama.cpp's RPC backend, which is a library beside it."""
    return _rpc(lib) is not None


def _rpc(lib: Library) -> Path | None:
    return next((lib.path.parent / name for name in _NAMES if (lib.path.parent / name).exists()), None)


def rpc(lib: Library) -> Any:
    """Its functions.

    Raises:
        click.ClickException: this build has none.
    """
    found = _rpc(lib)
    if found is None:
        raise click.ClickException(
            f'{lib.path} was built without RPC: CMAKE_ARGS="-DGGML_RPC=ON" pip install --no-binary :all: '
            "--no-deps llama-cpp-python, or name such a build in SWARM_LIBLLAMA"
        )
    return ctypes.CDLL(str(found))


def remote_devices(lib: Library, endpoints: Sequence[str]) -> list[int]:
    """The handles of the devices at these RPC servers."""
    if not endpoints:
        return []
    functions = rpc(lib)
    functions.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    register = lib._symbol("ggml_backend_register") or ctypes.CDLL(str(lib.path)).ggml_backend_register
    register.restype, register.argtypes = None, [ctypes.c_void_p]
    for endpoint in endpoints:
        register(functions.ggml_backend_rpc_add_server(endpoint.encode()))
    devices: list[int] = [lib.ggml_backend_dev_get(i) for i in range(lib.ggml_backend_dev_count())]
    return [device for device in devices if b"RPC" in lib.ggml_backend_dev_name(device)]


class WholeGguf:
    """A GGUF file as llama.cpp runs it. `remote`: how many of its last blocks, and the head, the servers compute."""

    def __init__(self, file: Path, threads: int, endpoints: Sequence[str], remote: int) -> None:
        lib = library()
        known = llamacpp_models.read(file)
        devices = remote_devices(lib, endpoints)
        model = LlamaModel(lib, str(file), devices, remote + 1)
        self._engine = LlamaEngine(
            model,
            width=known.hidden_size,
            vocabulary=known.vocab_size,
            layer=None,
            marked=True,
            tokens=1024,
            threads=threads,
            kv="float16",
            offload=bool(devices),
        )

    def generate(self, ids: list[int], tokens: int) -> tuple[list[int], list[float]]:
        """The greedy continuation of `ids`, with the time of each token."""
        self._engine.forget(0, 0)
        made: list[int] = []
        times: list[float] = []
        given, at, started = ids, 0, time.perf_counter()
        while len(made) < tokens:
            positions = np.arange(at, at + len(given), dtype=np.int32)
            wanted = np.arange(len(given)) == len(given) - 1
            logits = self._engine.run(np.array(given, np.int32), positions, np.int32(0), wanted)
            at += len(given)
            given = [int(logits[0].argmax())]
            made += given
            times.append(time.perf_counter() - started)
        return made, times


@click.group()
def main() -> None:
    """llama.cpp by itself."""


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--threads", type=int, default=1)
@click.option("--rpc", "endpoints", multiple=True)
@click.option("--remote", type=int, default=0)
def generate(file: Path, threads: int, endpoints: tuple[str, ...], remote: int) -> None:
    """Answer requests on standard input with the whole model."""
    whole = WholeGguf(file, threads, endpoints, remote)
    print("ready: whole", flush=True)
    for line in sys.stdin:
        tokens, times = whole.generate(**json.loads(line))
        print(json.dumps({"tokens": tokens, "times": times}), flush=True)


@main.command()
@click.argument("endpoint")
@click.option("--threads", type=int, default=1)
def serve(endpoint: str, threads: int) -> None:
    """Run llama.cpp's RPC server."""
    lib = library()
    by_type = lib._symbol("ggml_backend_dev_by_type") or ctypes.CDLL(str(lib.path)).ggml_backend_dev_by_type
    by_type.restype = ctypes.c_void_p
    devices = (ctypes.c_void_p * 1)(by_type(0))
    print("ready: rpc", flush=True)
    start = rpc(lib).ggml_backend_rpc_start_server
    start.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    start(endpoint.encode(), None, threads, 1, devices)


if __name__ == "__main__":
    main()
