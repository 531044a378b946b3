"""The doctor: faults of this machine as a member of a swarm, and how to mend them."""
