"""Checkpoints: model folders and the headers of their safetensors files."""
