"""What a program's parent holds the other end of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
WATCHER = """
import os, threading
from swarm.system import pipes
watcher = threading.Thread(target=pipes.wait_for_end, args=(0,))
watcher.start()
os.close(os.dup(0))  # what loading a library may do; on Windows it waits while somebody reads
print("asked", flush=True)
watcher.join()
print("ended", flush=True)
"""


def test_the_end_of_standard_input_is_seen_without_keeping_others_from_asking_about_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WATCHER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline().strip() == b"asked"
        child.stdin.write(b"what nobody looks at\n" * 200)
        assert child.poll() is None
        child.stdin.close()
        assert child.stdout.read().strip() == b"ended"
        assert child.wait() == 0
