"""What can be wrong with a machine: pure functions from what was found out to a `Finding`.

`swarm.probes` finds out, `swarm.doctor` puts both together.
"""
