"""The machine underneath: folders, processes, consoles, memory, firewalls."""
