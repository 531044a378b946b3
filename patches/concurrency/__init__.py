"""hivemind's processes, futures, locks and event loops, without fork."""
