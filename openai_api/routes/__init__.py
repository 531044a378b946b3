"""Routes: the endpoints of the gateway, each with the scope that it needs."""
