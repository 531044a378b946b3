"""The torch net: a family's own modules, cut to a span and filled with its weights."""
