"""Membership: how a peer enrols with the directories of its swarm and stays connected to them."""
