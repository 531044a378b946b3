"""The graph of one block, or of what follows the last, as onnxruntime-genai's model builder writes it.

The builder's command line writes whole models; here its classes are called for a block at a time, on weights that are
loaded already. So no more than one block is in memory at once, a span is any row of compiled blocks, and all layouts of
checkpoints that transformers reads can be compiled. Those classes are no public interface: this is the only file that
touches them.

Every block's graph takes `hidden.N` and gives `hidden.N+1`, and knows its sessions' lengths as grouped-query attention
wants them: the last position of each, and the largest length.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from typing import Any

import onnx_ir as ir
from onnxruntime_genai.models import builders

from backends.ort.devices import Device
from backends.ort.families import FAMILIES, told
from backends.stage import BackendError
from backends.torch_net.net import Net

LAST_POSITIONS, LONGEST, POSITIONS = "seqlens_k/output_0", "total_seq_len/output_0", "position_ids"
NORMED, LOGITS = "hidden_states", "logits"

logging.getLogger("onnxruntime.quantization").setLevel(logging.WARNING)  # it tells of every matrix

_DTYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}
_WEIGHTS = {**_DTYPES, "int8": ir.DataType.INT8, "int4": ir.DataType.INT4}


class Builder:
    """Builder: writes graphs for one model and device.

    Args:
        precision: of the weights: `float32`, `float16`, `int8` or `int4`, the last two in blocks of 32 numbers.
    """

    def __init__(self, net: Net, device: Device, precision: str) -> None:
        self.net, self.device, self.precision = net, device, precision
        self.config = told(net.config, net.architecture)
        self.family = getattr(builders, FAMILIES[net.architecture].builder)

    def block(self, number: int) -> ir.Model:
        """The graph of a block whose weights are loaded in float32."""
        model = self._model(self.precision)
        graph, cache = model.model.graph, ("key", "value")
        hidden = model.make_value(f"hidden.{number}", model.io_dtype, model.make_hidden_state_shape())
        graph.inputs.append(hidden)
        graph.inputs.append(model.make_value(LAST_POSITIONS, ir.DataType.INT32, ["batch_size"]))
        graph.inputs.append(model.make_value(LONGEST, ir.DataType.INT32, []))
        if POSITIONS in model.input_names:
            graph.inputs.append(model.make_value(POSITIONS, ir.DataType.INT64, ["batch_size", "sequence_length"]))
        for kind in cache:
            key = f"past_key_values.{kind}"
            shape = [*model.input_shapes[key][:3], model.head_size]
            graph.inputs.append(model.make_value(model.input_names[key][number], model.input_types[key], shape))
        model.mask_attrs.update(
            seqlens_k=LAST_POSITIONS.removesuffix("/output_0"), total_seq_len=LONGEST.removesuffix("/output_0")
        )
        model.layernorm_attrs.update(root_input=hidden.name, skip_input=hidden.name, first_layernorm=True)
        without_rope = getattr(self.config, "no_rope_layers", None)
        if without_rope and not without_rope[number]:
            model.attention_attrs.update(rope=False, use_rope_in_attn=False)
        with _silence():
            model.make_layer(number, self.net.blocks[number])
        after = f"hidden.{number + 1}"
        ends = [model.layernorm_attrs["root_input"], model.layernorm_attrs["skip_input"]]
        model.make_node("Add", ends, [after], name=f"/blocks/{number}/Add")
        graph.outputs.append(model.make_value(after, model.io_dtype, model.make_hidden_state_shape()))
        for kind in cache:
            key = f"present.{kind}"
            graph.outputs.append(
                model.make_value(model.output_names[key][number], model.output_types[key], model.output_shapes[key])
            )
        return self._finished(model, self.precision)

    def tail(self) -> ir.Model:
        """The graph of the final norm and the LM head, which keeps 8 bits where the blocks have 4."""
        blocks, norm, head = len(self.net.blocks), self.net.owner().norm, self.net.model.get_output_embeddings()
        precision = "int8" if self.precision == "int4" else self.precision
        model = self._model(precision)
        graph = model.model.graph
        hidden = model.make_value(f"hidden.{blocks}", model.io_dtype, model.make_hidden_state_shape())
        graph.inputs.append(hidden)
        model.layernorm_attrs.update(root_input=hidden.name, skip_input=hidden.name, last_layernorm=True)
        with _silence():
            model.make_layernorm(
                blocks, norm, skip=False, simple=model.layernorm_attrs["simple"], location="final_norm"
            )
            model.make_lm_head(head)
        graph.outputs.append(model.make_value(NORMED, model.io_dtype, model.make_hidden_state_shape()))
        shape = model.make_hidden_state_shape(last_dim=model.vocab_size)
        graph.outputs.append(model.make_value(LOGITS, model.output_types["logits"], shape))
        return self._finished(model, precision)

    def _model(self, precision: str) -> Any:
        options = {"exclude_embeds": True, "include_hidden_states": True, "windowed_kv_cache": False}
        io_dtype = _DTYPES[self.device.dtype]
        try:
            with _silence():
                return self.family(
                    copy.deepcopy(self.config), io_dtype, _WEIGHTS[precision], self.device.target, "", options
                )
        except (NotImplementedError, ValueError, KeyError, AttributeError) as error:
            raise BackendError(f"onnxruntime-genai cannot compile this model ({error})") from error

    def _finished(self, model: Any, precision: str) -> ir.Model:
        if precision in _DTYPES:
            finished: ir.Model = model.model
        else:
            with _silence():
                finished = model.to_nbits()
        finished.graph.sort()
        return finished


def _silence() -> contextlib.redirect_stdout[io.StringIO]:
    """The builder prints what it does to standard output, where a server prints its one line."""
    return contextlib.redirect_stdout(io.StringIO())
