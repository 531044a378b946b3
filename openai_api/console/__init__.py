"""The console: the swarm as the page shows it."""
