"""Model files: from the name of a model to a folder on this machine."""
