#!/usr/bin/env bash
# Upstream Petals under Windows Python in Wine: one route over the transformers backend on Windows, upstream's code on
# Windows, and the transformers backend on Linux.
#
#   tests/windows/petals.sh [ARGUMENTS OF pytest]
#
# Uses the Windows Python of run.sh, and keeps upstream's packages in a folder beside it (0.6 GB). Where Wine cannot be
# had it prints one line that begins with NOTICE and ends with 0.
set -euo pipefail

cd "$(dirname "$0")/../.."
wine=${SWARM_WINE:-${XDG_CACHE_HOME:-$HOME/.cache}/layerswarm-wine}
mkdir -p "$wine"
wine=$(cd "$wine" && pwd)
if [ -z "${SWARM_WINE_LOCKED:-}" ]; then # two runs at once would end each other's Wine
    SWARM_WINE_LOCKED=1 exec flock --close "$wine/lock" tests/windows/petals.sh "$@"
fi
python=${PYTHON:-$([ -x .venv/bin/python ] && echo "$PWD/.venv/bin/python" || echo python3)}
export PYTHON=$python

if ! [ -x "$wine/wpy" ] || ! [ -d "$wine/python/Lib/site-packages/torch" ]; then
    tests/windows/run.sh tests/routing/test_wire.py --collect-only >/dev/null || true # makes the Windows Python
    if ! [ -x "$wine/wpy" ]; then
        echo "NOTICE: upstream Petals on Windows skipped: there is no Windows Python here (see tests/windows/run.sh)"
        exit 0
    fi
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$version" != 3.11 ]; then
    echo "NOTICE: upstream Petals on Windows skipped: it needs Python 3.11, this is $version"
    exit 0
fi

packages=$wine/petals
stamp=$(sha256sum backends/upstream/requirements.txt | cut -c1-32)
if [ "$(cat "$packages.stamp" 2>/dev/null)" != "$stamp" ]; then
    rm -rf "$packages" "$packages.stamp"
    "$python" tests/windows/wine/windows_pip.py install --python-version "$version" --target "$packages" --no-deps \
        --root-user-action=ignore --no-warn-conflicts --no-compile -r backends/upstream/requirements.txt
    echo "$stamp" >"$packages.stamp"
fi
starter="Z:${PWD//\//\\}\\tests\\windows\\beside.py"
folder="Z:${packages//\//\\}"
printf '#!/usr/bin/env bash\nexec %q %q %q "$@"\n' "$wine/wpy" "$starter" "$folder" >"$wine/petals-wpy"
chmod +x "$wine/petals-wpy"

quietly() { WINEPREFIX=$wine/prefix WINEDEBUG=-all "$@" >/dev/null 2>&1 </dev/null; }
trap 'quietly /usr/lib/wine/wineserver -k || true' EXIT
quietly /usr/lib/wine/wineserver -k || true # one that is about to end would not let another begin
quietly /usr/lib/wine/wineserver -p
quietly /usr/lib/wine/wine64 wineboot
# Of the tests of the patches, those that import no torch: pytest with torch in its process has ended in Wine with an
# access violation, where pytest takes a variable out of the environment.
timeout 300 "$wine/wpy" -m pytest -p no:cacheprovider tests/patches/hosting/test_configs.py tests/patches/network/test_{dht,p2p}.py tests/patches/test_threads.py
SWARM_WPY=$wine/wpy SWARM_PETALS_WPY=$wine/petals-wpy \
    "$python" -m pytest -p no:cacheprovider tests/windows/test_petals.py "$@"
