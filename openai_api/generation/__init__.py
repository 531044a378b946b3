"""Generation: from a request that was understood to the pieces of its answer."""
