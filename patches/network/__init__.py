"""hivemind's network over `routing`: DHT, peers and their messages."""
