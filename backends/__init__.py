"""Backends: engines that compute a span of blocks, behind one interface (`backends.stage`)."""

from backends.stage import (
    Backend,
    BackendError,
    Batch,
    Memory,
    ModelInfo,
    Options,
    Row,
    Span,
    Stage,
)

__all__ = ["Backend", "BackendError", "Batch", "Memory", "ModelInfo", "Options", "Row", "Span", "Stage"]
