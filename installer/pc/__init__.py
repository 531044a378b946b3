"""Steps of the setup program on a Windows PC, once there is a Python: packages, PATH, firewall, service, and back.

Needs Python's standard library only until the packages are installed.
"""
