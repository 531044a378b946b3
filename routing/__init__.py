"""Routing: which server serves which blocks, and how messages reach it. ZeroMQ; knows no tensor library."""
