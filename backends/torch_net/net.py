"""Net: a family of models as this backend sees it, a net without weights, and where its blocks and its edges are.

Nothing here names a family. What an adapter would have to know of each (which modules run before the blocks and which
after, what a block returns, whether anything but hidden states passes from block to block) is learnt by `probe` from
the family's own forward, and a family that does not fit is refused.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import logging as hf_logging

from backends.checkpoint.files import ModelFolder
from backends.stage import BackendError


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Anatomy: what the forward of a family does around its blocks.

    Attributes:
        path: attribute names from the whole model to the module that holds the blocks, e.g. `("model", "decoder")`.
        blocks: attribute name of the list of blocks in that module, e.g. `layers`.
        count: number of blocks, L.
        edges: dotted names of the modules around the blocks that have weights.
        head: those of `edges` that run before the blocks.
        tail: those of `edges` that run after the blocks.
        returns: 0 where a block returns its hidden states, n where it returns a tuple of n that begins with them.
        kv_elements: for each block, how many elements one token takes in its KV cache.
        cache_name: the parameter of the forward that takes the KV cache.
        takes_positions: the forward has a parameter `position_ids`.
    """

    path: tuple[str, ...]
    blocks: str
    count: int
    edges: tuple[str, ...]
    head: frozenset[str]
    tail: frozenset[str]
    returns: int
    kv_elements: tuple[int, ...]
    cache_name: str
    takes_positions: bool

    def block_prefix(self, block: int) -> str:
        """What the names of one block's tensors begin with, e.g. `model.layers.7.`."""
        return ".".join((*self.path, self.blocks, str(block), ""))


class Net:
    """A causal language model whose parameters are on the meta device until `weights` fills some of them."""

    def __init__(self, model: Any, config: Any) -> None:
        self.model = model
        self.config = config
        self.attention: str = config._attn_implementation
        self.path, self.list_name = _find_blocks(model)
        self.blocks: list[nn.Module] = list(getattr(self.owner(), self.list_name))

    @property
    def architecture(self) -> str:
        return type(self.model).__name__

    def owner(self) -> nn.Module:
        """The module that holds the list of blocks."""
        module: nn.Module = self.model
        for name in self.path:
            module = getattr(module, name)
        return module

    def edges(self) -> dict[str, nn.Module]:
        """The modules with weights beside the path to the blocks, by dotted name."""
        found, module, prefix = {}, self.model, ""
        for step in (*self.path, self.list_name):
            for name, child in module.named_children():
                if name != step and child.state_dict():
                    found[prefix + name] = child
            module, prefix = getattr(module, step), f"{prefix}{step}."
        return found

    def use_attention(self, name: str) -> None:
        """Choose the attention implementation, also for modules that hold a configuration of their own."""
        self.attention = name
        for config in {
            id(module.config): module.config for module in self.model.modules() if hasattr(module, "config")
        }.values():
            config._attn_implementation = name

    def move(self, device: torch.device) -> None:
        """Put all that is loaded around the blocks on the device."""
        module: nn.Module = self.model
        for step in (*self.path, self.list_name):
            for name, child in module.named_children():
                if name != step and not any(parameter.is_meta for parameter in child.parameters()):
                    child.to(device)
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)
            module = getattr(module, step)

    def cache_lookups(self) -> None:
        """Make attribute look-ups of a loaded net cheap: a forward of one token makes a thousand of them.

        `nn.Module` finds parameters and children only after it has searched everything else, and transformers'
        configurations check every access; both are given what is asked for in plain instance dictionaries.
        """
        for root in (*self.blocks, *self.edges().values()):
            for module in root.modules():
                module.__dict__.update({**module._parameters, **module._modules})
        quick: dict[int, Any] = {}
        for module in self.model.modules():
            config = getattr(module, "config", None)
            if isinstance(config, PreTrainedConfig) and "_heterogeneity_spec" not in vars(config):
                if id(config) not in quick:
                    quick[id(config)] = _quick(config)
                module.config = quick[id(config)]

    def cache_layers(self) -> list[Any]:
        """transformers' own cache layers, one for each attention or recurrent state of the model."""
        try:
            layers: list[Any] = DynamicCache(config=self.config).layers
            return layers
        except Exception:  # noqa: BLE001 - a configuration that says nothing of its layers has plain attention layers
            return [DynamicLayer() for _ in self.blocks]

    def windowed_layers(self) -> frozenset[int]:
        """Indexes of the attention layers for which transformers' cache keeps a window only."""
        layers = enumerate(self.cache_layers())
        return frozenset(index for index, layer in layers if isinstance(layer, DynamicSlidingWindowLayer))

    @property
    def attention_only(self) -> bool:
        """Whether keys and values are all that the family keeps of earlier tokens."""
        plain = (DynamicLayer, DynamicSlidingWindowLayer)
        return not getattr(self.model, "_is_stateful", False) and all(type(x) in plain for x in self.cache_layers())

    @property
    def attention_is_open(self) -> bool:
        """Whether the family calls the attention function that its configuration names."""
        return bool(getattr(self.model, "_supports_attention_backend", False))


def _quick(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of a configuration, of a subclass of its class, with plain attribute access."""
    plain = {"__getattribute__": object.__getattribute__, "__setattr__": object.__setattr__}
    clone = copy.copy(config)
    aliases = {alias: getattr(config, alias, None) for alias in type(config).attribute_map}
    object.__setattr__(clone, "__class__", type(type(config).__name__, (type(config),), plain))
    clone.__dict__.update(aliases)
    return clone


def quiet() -> None:
    """Keep transformers' warnings and progress bars off standard error; what matters becomes a `BackendError`."""
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def text_config(folder: ModelFolder) -> Any:
    """The configuration of the folder's text model.

    Raises:
        BackendError: transformers does not know the family, or it is no decoder.
    """
    quiet()
    try:
        config = AutoConfig.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise BackendError(_unknown(folder, error)) from error
    if getattr(config, "is_encoder_decoder", False):
        raise BackendError(
            f"{folder.path} is an encoder-decoder ({config.model_type}); only causal language models work"
        )
    text = config.get_text_config(decoder=True)
    if text is not config and getattr(config, "tie_word_embeddings", False):
        text.tie_word_embeddings = True  # said of the whole, and meant of its text model
    return text


def build(folder: ModelFolder, dtype: torch.dtype) -> Net:
    """Build the family's causal language model with parameters on the meta device and real buffers.

    Raises:
        BackendError: transformers has no causal language model for this configuration.
    """
    config = text_config(folder)
    try:
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:
        raise BackendError(
            f"{folder.path}: transformers cannot build a causal language model from its configuration "
            f"({getattr(config, 'model_type', '?')}): {first_line(error)}"
        ) from error
    return Net(model.eval().requires_grad_(False), model.config)


def context_length(config: Any) -> int:
    """The longest sequence that the model can be served with, in tokens; 0 where it is unbounded.

    Rotary embeddings of type `longrope` change all earlier keys once a sequence outgrows the original context, which
    a cache cannot follow; such models are served up to that length.
    """
    longest = 0
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            longest = value
            break
    for rope in _rope_parameters(getattr(config, "rope_parameters", None)):
        original = rope.get("original_max_position_embeddings")
        if rope.get("rope_type") == "longrope" and isinstance(original, int):
            longest = min(longest or original, original)
    return longest


def _rope_parameters(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "rope_type" in value:
            yield value
        else:
            yield from (nested for nested in value.values() if isinstance(nested, dict))


def cache_parameter(base: nn.Module) -> str | None:
    """The name of the parameter that takes the KV cache."""
    known = inspect.signature(base.forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in known), None)


def takes(module: nn.Module, parameter: str) -> bool:
    """Whether the module's forward has this parameter."""
    return parameter in inspect.signature(module.forward).parameters


def _find_blocks(model: nn.Module) -> tuple[tuple[str, ...], str]:
    """The list of modules that holds most of the parameters; lists inside its members do not count."""
    best: tuple[int, tuple[str, ...]] = (0, ())

    def visit(module: nn.Module, path: tuple[str, ...]) -> None:
        nonlocal best
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList):
                size = sum(parameter.numel() for parameter in child.parameters())
                best = max(best, (size, (*path, name)), key=lambda entry: entry[0])
            else:
                visit(child, (*path, name))

    visit(model, ())
    if len(best[1]) < 2:
        raise BackendError(f"{type(model).__name__} has no list of blocks to take a span from")
    return best[1][:-1], best[1][-1]


def _unknown(folder: ModelFolder, error: Exception) -> str:
    if "auto_map" in folder.config:
        return (
            f"{folder.path} needs Python code that comes with the model, which this program never runs "
            "(trust_remote_code); take a model that transformers knows by itself"
        )
    kind = folder.config.get("model_type")
    if kind is None:
        return f"{folder.path}/config.json has no model_type, so it does not say which family the model belongs to"
    return f"{folder.path}: transformers cannot read the configuration of a {kind} model: {first_line(error)}"


def first_line(error: Exception) -> str:
    """An exception's text, short enough for a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
