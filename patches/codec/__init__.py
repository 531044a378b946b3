"""hivemind's serialisation: tensors and nested structures as bytes."""
