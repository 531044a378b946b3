"""Graphs on the disk: small files of nodes, beside files of the large tensors, which ONNX Runtime maps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

INLINE = 1 << 12  # bytes; smaller tensors lie among the nodes
ALIGNMENT = 1 << 16  # bytes; what Windows can map begins at a multiple of it


def write(model: ir.Model, folder: Path, name: str) -> int:
    """Write `name.onnx` and its tensors. The graph's file comes last and at once, so that it is there means all is.

    Tensors that are no weights of a block (rotary tables) are the same for every block, and are kept once, in a file
    that is named by their content.

    Returns:
        bytes of the tensors.
    """
    data = folder / f"{name}.data"
    total = 0
    work = _work(data)
    try:
        with work.open("wb") as file:
            for value in model.graph.initializers.values():
                tensor = value.const_value
                assert tensor is not None and tensor.name is not None
                if tensor.nbytes < INLINE:
                    continue
                raw = tensor.tobytes()
                total += len(raw)
                if "layers." in tensor.name or "lm_head" in tensor.name:
                    file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT)
                    place, offset = data.name, file.tell()
                    file.write(raw)
                else:
                    place, offset = _shared(raw, folder), 0
                shape = ir.Shape(tensor.shape.numpy())
                value.const_value = ir.ExternalTensor(
                    place, offset, len(raw), tensor.dtype, shape=shape, name=tensor.name, base_dir=folder
                )
        work.replace(data)
        work = _work(folder / f"{name}.onnx")
        work.write_bytes(ir.to_proto(model).SerializeToString())
        work.replace(folder / f"{name}.onnx")
    finally:
        work.unlink(missing_ok=True)
    return total


def _shared(raw: bytes, folder: Path) -> str:
    path = folder / f"shared-{hashlib.sha256(raw).hexdigest()[:16]}.data"
    if not path.exists():
        work = _work(path)
        work.write_bytes(raw)
        work.replace(path)
    return path.name


def _work(path: Path) -> Path:
    return path.with_name(f".{path.name}-{os.getpid()}.tmp")


def joined(files: Sequence[Path]) -> onnx.ModelProto:
    """One graph of graphs in a row, each of which takes what the one before gives; tensors stay in their files."""
    models = [onnx.load(file, load_external_data=False) for file in files]
    whole = models[0]
    for model in models[1:]:
        given = {output.name for output in whole.graph.output}
        taken = {entry.name for entry in model.graph.input}
        known = {entry.name for entry in whole.graph.input} | given
        made = {output for node in whole.graph.node for output in node.output if output}
        held = {tensor.name for tensor in whole.graph.initializer}
        kept = [output for output in whole.graph.output if output.name not in taken]
        del whole.graph.output[:]
        whole.graph.output.extend([*kept, *model.graph.output])
        whole.graph.input.extend(entry for entry in model.graph.input if entry.name not in known)
        whole.graph.node.extend(node for node in model.graph.node if not made.intersection(node.output))
        whole.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in held)
        del whole.graph.value_info[:]
        whole.opset_import.extend(
            entry for entry in model.opset_import if entry.domain not in {known.domain for known in whole.opset_import}
        )
    return whole


def nbytes(file: Path) -> int:
    """Bytes of a graph's own tensors."""
    return file.with_suffix(".data").stat().st_size + file.stat().st_size
