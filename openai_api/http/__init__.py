"""HTTP around the endpoints: keys, limits, disconnects, logs, the server itself."""
