"""What computes a span of blocks: one interface (`backends.stage`), several engines behind it."""

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
