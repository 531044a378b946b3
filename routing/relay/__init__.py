"""The relay: connections to peers that cannot be dialled, through a router."""
