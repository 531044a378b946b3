"""The doctor: what may be wrong with this machine, and how to mend it."""
