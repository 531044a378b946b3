"""The server: a loop that hosts sessions on one span of blocks."""
