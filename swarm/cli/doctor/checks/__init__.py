"""What can be wrong with a machine: pure functions from what was found out to a `Finding`.

`swarm.cli.doctor.probes` finds out, `swarm.cli.doctor.command` puts both together.
"""
