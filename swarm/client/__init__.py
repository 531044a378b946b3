"""The client: sessions over a route of servers, in a thread of their own, with a sync and an async face."""
