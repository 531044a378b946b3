"""The setup program for Windows: `build.py` makes it on Linux, `pc/` is what it runs on the user's machine."""
