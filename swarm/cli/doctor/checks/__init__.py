"""Checks: pure functions from what the probes found out about a machine to a `Finding`.

`swarm.cli.doctor.probes` finds out, `swarm.cli.doctor.command` puts both together.
"""
