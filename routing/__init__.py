"""Who serves which blocks, and how messages reach them. ZeroMQ; knows no tensor library."""
