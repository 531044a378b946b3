"""Run-time patches that let upstream Petals run on Windows, over `routing`: see `WINDOWS_PATCHES.md`. None yet."""
