"""Job objects of Windows: they end the processes in them when this process ends, however that happens.

Elsewhere a `JobObject` does nothing. bootstrap.py loads this file before anything is installed, so it needs nothing
but the standard library.
"""

from __future__ import annotations

import sys

if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    _KILL_ON_JOB_CLOSE = 0x2000  # JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
    _EXTENDED_LIMITS = 9  # JobObjectExtendedLimitInformation
    _SET_QUOTA, _TERMINATE = 0x0100, 0x0001  # rights that AssignProcessToJobObject asks for

    class _BasicLimits(ctypes.Structure):
        """JOBOBJECT_BASIC_LIMIT_INFORMATION"""

        _fields_ = (
            ("process_time", wintypes.LARGE_INTEGER),
            ("job_time", wintypes.LARGE_INTEGER),
            ("flags", wintypes.DWORD),
            ("least_working_set", ctypes.c_size_t),
            ("most_working_set", ctypes.c_size_t),
            ("processes", wintypes.DWORD),
            ("affinity", ctypes.c_size_t),
            ("priority_class", wintypes.DWORD),
            ("scheduling_class", wintypes.DWORD),
        )

    class _ExtendedLimits(ctypes.Structure):
        """JOBOBJECT_EXTENDED_LIMIT_INFORMATION"""

        _fields_ = (("basic", _BasicLimits), ("io", ctypes.c_uint64 * 6), ("memory", ctypes.c_size_t * 4))

    class JobObject:
        """The system ends its processes when the last handle to it is closed, which is at this process's end.

        https://learn.microsoft.com/windows/win32/procthread/job-objects
        """

        def __init__(self) -> None:
            kernel = self._kernel = ctypes.WinDLL("kernel32", use_last_error=True)
            kernel.CreateJobObjectW.restype = kernel.OpenProcess.restype = wintypes.HANDLE
            kernel.SetInformationJobObject.argtypes = [
                wintypes.HANDLE,
                ctypes.c_int,
                ctypes.c_void_p,
                wintypes.DWORD,
            ]
            kernel.AssignProcessToJobObject.argtypes = [wintypes.HANDLE, wintypes.HANDLE]
            kernel.CloseHandle.argtypes = [wintypes.HANDLE]
            self._handle = kernel.CreateJobObjectW(None, None)  # not inherited: a child would keep the job alive
            limits = _ExtendedLimits()
            limits.basic.flags = _KILL_ON_JOB_CLOSE
            kernel.SetInformationJobObject(self._handle, _EXTENDED_LIMITS, ctypes.byref(limits), ctypes.sizeof(limits))

        def add(self, pid: int) -> bool:
            """Put a child in. False: the system does not allow it, or the child is gone."""
            process = self._kernel.OpenProcess(_SET_QUOTA | _TERMINATE, False, pid)
            if not process:
                return False
            try:
                return bool(self._kernel.AssignProcessToJobObject(self._handle, process))
            finally:
                self._kernel.CloseHandle(process)

else:

    class JobObject:
        """Nothing: elsewhere a child sees its parent's end by other means."""

        def add(self, pid: int) -> bool:
            """Do nothing; False says so."""
            return False
