"""The graph of one block, or of what follows the last, exported by torch from the family's own forward.

This is for families that onnxruntime-genai's builder does not know. The graph has the names that `engine` drives.
Instead of grouped-query attention it holds the family's own: new keys and values are written into the session's place
(TensorScatter), and attention runs over the whole room of the place, with a mask. Transformers' rule of which token may
see which (causal, windows) makes that mask, so it is what the family says.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import nn
from torch.onnx.ops import symbolic
from transformers import Cache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from backends.ort.builder import LAST_POSITIONS, LOGITS, NORMED
from backends.ort.kv_cache import room_for
from backends.ort.operator_layers import BLOCK, products
from backends.stage import BackendError, Span
from backends.torch_net.net import Anatomy, Net, first_line
from backends.torch_net.subspan import SubspanView

_BITS = {"int8": 8, "int4": 4}
_OPSET = 24  # the first with TensorScatter
_BATCH, _TOKENS, _ROOM = 2, 3, 7  # of the example that is traced; any others may follow

for _name in ("onnxscript", "onnx_ir", "torch.onnx"):
    logging.getLogger(_name).setLevel(logging.ERROR)  # they tell of every step


class Exporter:
    """Exporter: writes graphs for one model; see `builder.Builder`."""

    def __init__(self, net: Net, anatomy: Anatomy, precision: str) -> None:
        self.net, self.anatomy, self.precision = net, anatomy, precision
        net.use_attention("eager")
        if hasattr(net.config, "max_seq_len"):  # mpt makes alibi for so many tokens, and the largest place has more
            net.config.max_seq_len = room_for(net.config.max_seq_len)

    def block(self, number: int) -> ir.Model:
        """The graph of a block whose weights are loaded in float32."""
        names = [f"{number}.{kind}" for kind in ("key", "value")]
        inputs = [f"hidden.{number}", LAST_POSITIONS, *(f"past_key_values.{name}" for name in names)]
        outputs = [f"hidden.{number + 1}", *(f"present.{name}" for name in names)]
        hidden = torch.zeros(_BATCH, _TOKENS, self.net.config.hidden_size)
        last = torch.arange(_BATCH, dtype=torch.int32) + _TOKENS
        bits = _BITS.get(self.precision)
        with products(self.net.model, bits):
            block = _Block(self.net, self.anatomy, number)
            model = self._export(block, (hidden, last, *block.places(hidden)), inputs, outputs)
        return _finished(model, f"layers.{number}", bits)

    def tail(self) -> ir.Model:
        """The graph of the final norm and the LM head, which keeps 8 bits where the blocks have 4."""
        hidden = torch.zeros(_BATCH, _TOKENS, self.net.config.hidden_size)
        with products(self.net.model, None):
            tail = _Tail(self.net, self.anatomy)
            model = self._export(tail, (hidden,), [f"hidden.{self.anatomy.count}"], [NORMED, LOGITS])
        return _finished(model, "lm_head", 8 if self.precision in _BITS else None)

    def _export(
        self, module: nn.Module, example: tuple[torch.Tensor, ...], inputs: list[str], outputs: list[str]
    ) -> ir.Model:
        # Hidden states are [batch, tokens, ...], last positions [batch], keys and values [batch, heads, room, ...].
        free = {3: (0, 1), 1: (0,), 4: (0, 2)}
        shapes = tuple(dict.fromkeys(free[x.ndim], torch.export.Dim.DYNAMIC) for x in example)
        names: dict[str, Any] = {"input_names": inputs, "output_names": outputs}
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                program = torch.onnx.export(
                    module.eval(),
                    example,
                    **names,
                    dynamic_shapes=shapes,
                    opset_version=_OPSET,
                    dynamo=True,
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            raise BackendError(
                f"torch cannot export a {self.net.architecture} ({first_line(error)}); take --backend transformers"
            ) from error
        assert program is not None
        return program.model


class _Block(nn.Module):
    """A block as a function of hidden states, last positions, and places of keys and values."""

    def __init__(self, net: Net, anatomy: Anatomy, number: int) -> None:
        super().__init__()
        self.view = SubspanView(net, anatomy, Span(number, number + 1), tail=False, head=False)
        self.anatomy, self.number, self.block = anatomy, number, net.blocks[number]

    def places(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """Empty places for keys and values; a run of the block shows their shapes."""
        cache = Cache(layers=[DynamicLayer() for _ in range(self.anatomy.count)])
        with torch.no_grad():
            self._run(hidden, torch.zeros(hidden.shape[:2], dtype=torch.int64), cache)
        layer = cache.layers[self.number]
        return [torch.zeros(*x.shape[:2], _ROOM, x.shape[3]) for x in (layer.keys, layer.values)]

    def forward(self, hidden: torch.Tensor, last: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Any:
        tokens = hidden.shape[1]
        starts = last.to(torch.int64) + 1 - tokens
        layer = _Place((key, value), starts)
        cache = Cache(layers=[layer] * self.anatomy.count)
        return self._run(hidden, starts[:, None] + torch.arange(tokens), cache), *layer.present

    def _run(self, hidden: torch.Tensor, positions: torch.Tensor, cache: Cache) -> torch.Tensor:
        with _masks(positions):
            return self.view.batch(hidden, positions, cache)


class _Tail(nn.Module):
    """What follows the last block."""

    def __init__(self, net: Net, anatomy: Anatomy) -> None:
        super().__init__()
        self.view = SubspanView(net, anatomy, Span(anatomy.count, anatomy.count), tail=True, head=False)
        self.model = self.view.model

    def forward(self, hidden: torch.Tensor) -> Any:
        return self.view.after(hidden)


class _Place(DynamicLayer):  # type: ignore[misc]
    """The cache of a block: the sessions' places, which new keys and values are written into."""

    def __init__(self, past: Sequence[torch.Tensor], starts: torch.Tensor) -> None:
        super().__init__()
        self.past, self.starts = past, starts
        self.present: list[torch.Tensor] = []

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The whole places: what lies beyond the sessions' lengths is masked."""
        self.present = [
            symbolic("TensorScatter", (past, new, self.starts), {"axis": -2}, dtype=past.dtype, shape=past.shape)
            for past, new in zip(self.past, (key_states, value_states), strict=True)
        ]
        return tuple(self.present)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.past[0].shape[2], 0

    def get_seq_length(self) -> int:
        return 0  # each session has its own; positions tell


@contextlib.contextmanager
def _masks(positions: torch.Tensor) -> Iterator[None]:
    """Have transformers make the masks of eager attention for tokens at these positions, `[batch, tokens]`."""

    def mask(*, kv_length: int, mask_function: Callable[..., torch.Tensor], dtype: torch.dtype, **_: Any) -> Any:
        batch = torch.arange(positions.shape[0])[:, None, None, None]
        seen = mask_function(batch, 0, positions[:, None, :, None], torch.arange(kv_length)[None, None, None])
        return torch.where(seen, torch.zeros((), dtype=dtype), torch.finfo(dtype).min)

    ALL_MASK_ATTENTION_FUNCTIONS["eager"] = mask
    try:
        yield
    finally:
        del ALL_MASK_ATTENTION_FUNCTIONS["eager"]


def _finished(model: ir.Model, name: str, bits: int | None) -> ir.Model:
    """Names that are the block's own, so that blocks can be joined, and weights of so many bits."""
    outside = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    for value in list(model.graph.initializers.values()):
        value.name = f"{name}.{value.name}"
    for number, node in enumerate(model.graph):
        node.name = f"/{name}/{number}"
        for value in node.outputs:
            if value.name not in outside:
                value.name = f"/{name}/{value.name}"
    if bits is None:
        return model
    quantizer = MatMulNBitsQuantizer(
        ir.to_proto(model), bits=bits, block_size=BLOCK, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    quantised: ir.Model = ir.from_proto(quantizer.model.model)
    return quantised
