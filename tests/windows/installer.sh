#!/usr/bin/env bash
# From the setup program to the first token, under Wine on Debian 12: builds the offline variant with NSIS, installs it
# silently onto the Windows Python of setup.sh, runs the installed programs with a real model, uninstalls, and looks for
# what is left.
#
#   tests/windows/installer.sh [ARGUMENTS OF pytest]
#
# SWARM_WINE and PYTHON are those of run.sh. SWARM_SETUP names a setup program to try in place of building one. Where Wine
# or NSIS cannot be had it prints one line that begins with NOTICE and ends with 0.
set -euo pipefail

cd "$(dirname "$0")/../.."
started=$SECONDS
wine=${SWARM_WINE:-${XDG_CACHE_HOME:-$HOME/.cache}/layerswarm-wine}
mkdir -p "$wine"
wine=$(cd "$wine" && pwd)
if [ -z "${SWARM_WINE_LOCKED:-}" ]; then
    SWARM_WINE_LOCKED=1 exec flock --close "$wine/lock" tests/windows/installer.sh "$@"
fi
python=${PYTHON:-$([ -x .venv/bin/python ] && echo "$PWD/.venv/bin/python" || echo python3)}
export PYTHON=$python

if ! command -v makensis >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends nsis; } \
        >"$wine/nsis.log" 2>&1; then
        echo "NOTICE: installer skipped: makensis is missing and could not be installed (apt-get install nsis, as root)"
        exit 0
    fi
fi
tests/windows/setup.sh "$wine" || {
    code=$?
    [ "$code" = 77 ] && exit 0
    exit "$code"
}

# What a Windows PC has and Wine lacks: uv looks for pythonw.exe, and needs bcryptprimitives.dll itself.
[ -e "$wine/python/pythonw.exe" ] || cp "$wine/python/python.exe" "$wine/python/pythonw.exe"
export WINEPREFIX=$wine/installer WINEARCH=win64 WINEDEBUG=${WINEDEBUG:--all}
export WINEDLLOVERRIDES='mscoree,mshtml=;winemenubuilder.exe,winedbg.exe=d'
export KMP_AFFINITY=disabled LC_ALL=C.UTF-8 # Wine takes the letters of file names from the locale
quietly() { "$@" >/dev/null 2>&1 </dev/null; }
trap 'quietly /usr/lib/wine/wineserver -k || true; rm -rf "$WINEPREFIX"' EXIT
quietly /usr/lib/wine/wineserver -k || true
rm -rf "$WINEPREFIX"
quietly /usr/lib/wine/wine64 wineboot -i
quietly /usr/lib/wine/wine64 reg import "$PWD/tests/windows/wine/overrides.reg"
cp "$wine/python/bcryptprimitives.dll" "$WINEPREFIX/drive_c/windows/system32/"
quietly /usr/lib/wine/wineserver -w

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ -z "${SWARM_SETUP:-}" ]; then
    "$python" -m installer.build offline --python "$version" --output "$wine/dist" >"$wine/build.log" 2>&1 || {
        cat "$wine/build.log" >&2
        exit 1
    }
    SWARM_SETUP=$(echo "$wine"/dist/layerswarm-*-setup-offline-py"${version/./}".exe)
    echo "built $(basename "$SWARM_SETUP") ($(du -m "$SWARM_SETUP" | cut -f 1) MiB) after $((SECONDS - started)) s"
fi
export SWARM_SETUP SWARM_SETUP_PYTHON=$wine/python/python.exe

# Wine's services and its desktop, which ends after a while, would hold the pipes of whatever starts them first.
quietly /usr/lib/wine/wineserver -p
quietly /usr/lib/wine/wine64 wineboot
quietly /usr/lib/wine/wine64 schtasks /Query
"$python" -m pytest -p no:cacheprovider tests/windows/test_installer.py "$@"
echo "installer: from its build to the uninstallation in $((SECONDS - started)) s"
