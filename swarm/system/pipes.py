"""Pipes: waiting for the other end to close."""

from __future__ import annotations

import os
import sys
import time

CHUNK = 1024  # bytes, which are thrown away

if sys.platform == "win32":
    import ctypes
    import msvcrt
    from ctypes import wintypes

    _LOOK = 0.2  # s between two looks

    def wait_for_end(descriptor: int) -> None:
        """Return when the other end of the pipe is closed, whatever comes out of it before.

        `os.read` would hold the C runtime's lock of the descriptor while it waits, and a waiting `ReadFile` the
        system's lock of the pipe. A call that asks about standard input meanwhile waits as long, as scipy's libraries
        do while they load. So this looks before it reads.
        https://learn.microsoft.com/windows/win32/api/namedpipeapi/nf-namedpipeapi-peeknamedpipe
        """
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.PeekNamedPipe.argtypes = [wintypes.HANDLE, ctypes.c_void_p, wintypes.DWORD, *[ctypes.c_void_p] * 3]
        kernel.ReadFile.argtypes = [wintypes.HANDLE, ctypes.c_void_p, wintypes.DWORD, *[ctypes.c_void_p] * 2]
        handle = msvcrt.get_osfhandle(descriptor)
        buffer, count = ctypes.create_string_buffer(CHUNK), wintypes.DWORD()

        def read() -> bool:
            return bool(kernel.ReadFile(handle, buffer, CHUNK, ctypes.byref(count), None)) and count.value > 0

        while kernel.PeekNamedPipe(handle, None, 0, None, ctypes.byref(count), None):
            if count.value:
                read()
            else:
                time.sleep(_LOOK)
        while read():  # at its end, or a console or a file, which cannot be peeked into
            pass

else:

    def wait_for_end(descriptor: int) -> None:
        """Return when the other end of the pipe is closed, whatever comes out of it before."""
        while os.read(descriptor, CHUNK):
            pass
