"""Planning: which servers a session uses and which blocks a server takes, as pure functions."""
