"""llama.cpp as a shared library: where it is, and what is used of it."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from backends import system_memory
from backends.llamacpp import layouts
from backends.stage import BackendError

log = logging.getLogger(__name__)

VARIABLE = "SWARM_LIBLLAMA"
# Packages that bring the library, and where in them it lies.
_PACKAGES = {
    "llama_cpp": ("lib/libllama.so", "lib/libllama.dylib", "lib/llama.dll", "bin/llama.dll"),
    "xllamacpp": ("xllamacpp*.so",),  # the module itself; it exports llama.cpp's functions except on Windows
    "llama_cpp_py_sync": ("libllama.so", "libllama.dylib", "llama.dll"),
}
_ENVIRONMENT = {
    "GGML_NO_BACKTRACE": "1",  # it would start a debugger
    # Threads wait for each other hundreds of times in each forward, so they may spin, which `OMP_WAIT_POLICY` alone
    # would forbid; but no longer than that, because the next hop may be on the same machine.
    "GOMP_SPINCOUNT": "10000",
}
_P, _I, _U, _S, _B = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32, ctypes.c_size_t, ctypes.c_bool
_FLOATS = ctypes.POINTER(ctypes.c_float)
_TEXT = ctypes.c_char_p
# name: (result, arguments), as in llama.h, ggml.h and ggml-backend.h
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [layouts.LogCallback, _P]),
    "llama_model_default_params": (layouts.Opaque, []),
    "llama_context_default_params": (layouts.Opaque, []),
    "llama_model_load_from_file": (_P, [_TEXT, layouts.Opaque]),
    "llama_model_free": (None, [_P]),
    "llama_free": (None, [_P]),
    "llama_get_memory": (_P, [_P]),
    "llama_memory_seq_rm": (_B, [_P, _I, _I, _I]),
    "llama_decode": (_I, [_P, layouts.LlamaBatch]),
    "llama_set_embeddings": (None, [_P, _B]),
    "llama_get_logits": (_P, [_P]),
    "llama_get_embeddings": (_P, [_P]),
    "llama_print_system_info": (_TEXT, []),
    "ggml_get_name": (_TEXT, [_P]),
    "ggml_nbytes": (_S, [_P]),
    "ggml_backend_tensor_get": (None, [_P, _P, _S, _S]),
    "ggml_backend_tensor_set": (None, [_P, _P, _S, _S]),
    "ggml_quantize_chunk": (_S, [ctypes.c_int, _P, _P, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _P]),
    "ggml_backend_load_all": (None, []),
    "ggml_backend_dev_count": (_S, []),
    "ggml_backend_dev_get": (_P, [_S]),
    "ggml_backend_dev_name": (_TEXT, [_P]),
    "ggml_backend_dev_type": (ctypes.c_int, [_P]),
    "ggml_backend_dev_memory": (None, [_P, ctypes.POINTER(_S), ctypes.POINTER(_S)]),
}
# `llama-ext.h`; C++ functions, by the names that GCC and Clang give them, and Microsoft's compiler.
_LAYER_INPUTS = {
    "set_layer_input": (
        (
            "_Z30llama_set_embeddings_layer_inpP13llama_contextjb",
            "?llama_set_embeddings_layer_inp@@YAXPEAUllama_context@@I_N@Z",
        ),
        None,
        [_P, _U, _B],
    ),
    "get_layer_input": (
        (
            "_Z30llama_get_embeddings_layer_inpP13llama_contextj",
            "?llama_get_embeddings_layer_inp@@YAPEAMPEAUllama_context@@I@Z",
        ),
        _P,
        [_P, _U],
    ),
}


def find() -> Path:
    """The library: what `SWARM_LIBLLAMA` names, or the one of an installed package.

    Raises:
        BackendError: there is none.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        path = Path(chosen).expanduser()
        names = ("libllama.so", "libllama.dylib", "llama.dll")
        found = path if path.is_file() else next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            raise BackendError(f"{VARIABLE}={chosen} is neither llama.cpp's library nor a folder that holds it")
        return found.resolve()
    for package, patterns in _PACKAGES.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for pattern in patterns:
                for path in sorted(Path(folder).glob(pattern)):
                    return path
    raise BackendError(
        "there is no llama.cpp here: pip install layerswarm[llama-cpp], or llama-cpp-python for one that is built for "
        f"this machine, or name a library of yours in {VARIABLE}"
    )


class Library:
    """llama.cpp's functions, by their own names. Loaded once in a process: `library()`.

    Raises:
        BackendError: it cannot be loaded, or is of a version that is not known here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._libraries = _open(path)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = self._symbol(name)
            if function is None:
                raise BackendError(f"{path} has no function {name}, so it is no llama.cpp of these years; take another")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        for name, (mangled, result, arguments) in _LAYER_INPUTS.items():
            function = next(filter(None, map(self._symbol, mangled)), None)
            if function is not None:
                function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self._init = self._symbol("llama_init_from_model")
        self._keep = layouts.LogCallback(_log)
        self.llama_log_set(self._keep, None)
        self.llama_backend_init()
        if not self.ggml_backend_dev_count():
            self.ggml_backend_load_all()
        self.context_params()  # refuses unknown versions
        log.info("llama.cpp from %s: %s", path, self.llama_print_system_info().decode(errors="replace").strip(" |"))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    @property
    def gives_layer_inputs(self) -> bool:
        """Whether the input of a block can be asked for (the fast way to a span's hidden states)."""
        return bool(self.set_layer_input and self.get_layer_input)

    def context_params(self) -> Any:
        """The default parameters of a context, in the layout of this version."""
        found = layouts.fitting(bytes(self.llama_context_default_params()))
        if found is None:
            raise BackendError(
                f"{self.path} is a version of llama.cpp whose parameters are not known here; "
                "take one of those in the extra: pip install layerswarm[llama-cpp]"
            )
        return found

    def new_context(self, model: int, params: Any) -> int | None:
        """`llama_init_from_model`."""
        assert self._init is not None
        self._init.restype, self._init.argtypes = _P, [_P, type(params)]
        context: int | None = self._init(model, params)
        return context

    def devices(self) -> dict[str, int]:
        """GPUs that this build can use: their names (`CUDA0`, `Vulkan1`, ...) and handles."""
        every = [self.ggml_backend_dev_get(i) for i in range(self.ggml_backend_dev_count())]
        gpus = [device for device in every if self.ggml_backend_dev_type(device) in (1, 2)]  # discrete, integrated
        return {self.ggml_backend_dev_name(device).decode(): device for device in gpus}

    def free_memory(self, device: int | None) -> int | None:
        """The bytes that a device of `devices` has left; those of main memory where it is None, which is the CPU.

        Returns:
            None where the device's driver does not say: ggml then gives a size of 0.
        """
        if device is None:
            return system_memory.available()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        return free.value if total.value else None

    def _symbol(self, name: str) -> Any:
        for library in self._libraries:
            try:
                return library[name]
            except AttributeError:
                continue
        return None


@lru_cache(maxsize=1)
def library() -> Library:
    """llama.cpp, loaded. Raises: BackendError: as `find` and `Library`."""
    return Library(find())


def last_error() -> str:
    """What llama.cpp last complained of, for a message."""
    return "; ".join(_complaints[-2:]) or "it gave no reason"


_complaints: list[str] = []
_WARNING, _ERROR = 3, 4  # of ggml_log_level


def _log(level: int, text: bytes, _: Any) -> None:
    line = text.decode(errors="replace").strip()
    if level >= _ERROR and line and level < 5:
        _complaints[:] = [*_complaints[-4:], line]
        log.info("llama.cpp: %s", line)
    elif line:
        log.debug("llama.cpp: %s", line)


def _open(path: Path) -> list[ctypes.CDLL]:
    """The library, and beside it on Windows those that its functions are spread over."""
    try:
        if sys.platform == "win32":
            os.add_dll_directory(str(path.parent))
            beside = [path.parent / name for name in ("ggml.dll", "ggml-base.dll")]
            return [ctypes.CDLL(str(p)) for p in (path, *beside) if p.exists()]
        return [ctypes.CDLL(str(path))]
    except OSError as error:
        raise BackendError(f"{path} cannot be loaded: {error}") from error
