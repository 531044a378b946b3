"""Probes of what only Windows has: the registry, access lists, DXGI. Elsewhere everything here says None or nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from swarm.cli.doctor.checks.accelerators import Gpu

_POLICY = r"SYSTEM\CurrentControlSet\Services\SharedAccess\Parameters\FirewallPolicy"
_PROFILES = ("StandardProfile", "PublicProfile", "DomainProfile")  # the first is the one for private networks

if sys.platform == "win32":
    import ctypes
    import winreg
    from ctypes import wintypes

    def _value(key: str, name: str) -> int | str | None:
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as opened:
                value: int | str = winreg.QueryValueEx(opened, name)[0]
                return value
        except OSError:
            return None

    def long_paths() -> bool | None:
        """Whether paths of more than 260 characters are enabled. None: this is not Windows."""
        return _value(r"SYSTEM\CurrentControlSet\Control\FileSystem", "LongPathsEnabled") == 1

    def firewall_rules() -> list[str] | None:
        """The rules of the firewall as the registry holds them. None: this is not Windows."""
        rules = []
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _POLICY + r"\FirewallRules") as opened:
                for index in range(winreg.QueryInfoKey(opened)[1]):
                    rules.append(str(winreg.EnumValue(opened, index)[1]))
        except OSError:
            return rules
        return rules

    def firewall_on() -> bool:
        """Whether the firewall is on for any kind of network."""
        return any(_value(rf"{_POLICY}\{profile}", "EnableFirewall") != 0 for profile in _PROFILES)

    def access_list(path: Path) -> str | None:
        """The file's owner and access list as SDDL; None where they cannot be read.

        https://learn.microsoft.com/windows/win32/api/aclapi/nf-aclapi-getnamedsecurityinfow
        """
        advapi = ctypes.WinDLL("advapi32")
        descriptor, text = ctypes.c_void_p(), wintypes.LPWSTR()
        file_object, owner_and_list, revision = 1, 0x1 | 0x4, 1
        nothing = [None] * 4
        if advapi.GetNamedSecurityInfoW(str(path), file_object, owner_and_list, *nothing, ctypes.byref(descriptor)):
            return None
        local_free = ctypes.WinDLL("kernel32").LocalFree
        local_free.argtypes = [ctypes.c_void_p]
        try:
            if not advapi.ConvertSecurityDescriptorToStringSecurityDescriptorW(
                descriptor, revision, owner_and_list, ctypes.byref(text), None
            ):
                return None
            sddl = text.value
            local_free(text)
            return sddl
        finally:
            local_free(descriptor)

    class _AdapterDescription(ctypes.Structure):
        """DXGI_ADAPTER_DESC1"""

        _fields_ = (
            ("description", wintypes.WCHAR * 128),
            ("vendor", wintypes.UINT),
            ("device", wintypes.UINT),
            ("subsystem", wintypes.UINT),
            ("revision", wintypes.UINT),
            ("own", ctypes.c_size_t),
            ("own_system", ctypes.c_size_t),
            ("shared", ctypes.c_size_t),
            ("luid", ctypes.c_int64),
            ("flags", wintypes.UINT),
        )

    _FACTORY = (ctypes.c_ubyte * 16).from_buffer_copy(  # IID_IDXGIFactory1, 770aae78-f26f-4dba-a829-253c83d1b387
        bytes.fromhex("78ae0a77 6ff2 ba4d a829 253c83d1b387")
    )
    _RELEASE, _ENUM_ADAPTERS, _GET_DESC = 2, 12, 10  # places in the tables of IUnknown, IDXGIFactory1, IDXGIAdapter1
    _SOFTWARE, _NVIDIA = 2, 0x10DE

    def _call(this: ctypes.c_void_p, place: int, *arguments: Any) -> int:
        """A method of a COM object, by its place in the table that the object begins with."""
        table = ctypes.cast(this, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))).contents
        method = ctypes.WINFUNCTYPE(ctypes.c_long, ctypes.c_void_p, *(type(each) for each in arguments))(
            table[place] or 0
        )
        return int(method(this, *arguments))

    def display_adapters() -> list[Gpu]:
        """Every GPU that Direct3D, and so DirectML, can compute on.

        https://learn.microsoft.com/windows/win32/api/dxgi/nf-dxgi-idxgifactory1-enumadapters1
        """
        factory = ctypes.c_void_p()
        try:
            created = ctypes.WinDLL("dxgi").CreateDXGIFactory1(ctypes.byref(_FACTORY), ctypes.byref(factory))
        except OSError:
            return []
        return adapters_of(factory) if created == 0 and factory else []

    def adapters_of(factory: ctypes.c_void_p) -> list[Gpu]:
        """The GPUs that an `IDXGIFactory1` enumerates. It is released."""
        found, adapter, index = [], ctypes.c_void_p(), 0
        while _call(factory, _ENUM_ADAPTERS, wintypes.UINT(index), ctypes.pointer(adapter)) == 0:
            description = _AdapterDescription()
            if _call(adapter, _GET_DESC, ctypes.pointer(description)) == 0 and not description.flags & _SOFTWARE:
                shared = description.own < 1 << 29  # processors with a GPU show a small part of the main memory
                memory = description.shared if shared else description.own
                nvidia = description.vendor == _NVIDIA
                found.append(Gpu(description.description, int(memory), nvidia=nvidia, shared=shared))
            _call(adapter, _RELEASE)
            index += 1
        _call(factory, _RELEASE)
        return found

else:

    def long_paths() -> bool | None:
        return None

    def firewall_rules() -> list[str] | None:
        return None

    def firewall_on() -> bool:
        return False

    def access_list(path: Path) -> str | None:
        return None

    def display_adapters() -> list[Gpu]:
        return []
