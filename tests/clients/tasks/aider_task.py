"""aider: a question about a file, asked on the command line."""

import os
import subprocess
import sys
from pathlib import Path

Path("greeting.py").write_text('def greet(name):\n    return f"Hello, {name}!"\n')
command = [sys.executable, "-m", "aider", "--model", f"openai/{os.environ['MODEL']}", "--chat-mode", "ask"]
command += ["--no-git", "--no-auto-commits", "--yes-always", "--no-check-update", "--no-show-model-warnings"]
command += ["--no-analytics", "--no-pretty", "--no-detect-urls", "--map-tokens", "0", "--timeout", "600"]
done = subprocess.run(
    [*command, "--message", "What does greet return?", "greeting.py"], capture_output=True, text=True, timeout=800
)
assert done.returncode == 0, done.stdout + done.stderr
assert "Tokens:" in done.stdout and "received" in done.stdout, done.stdout + done.stderr
print(next(line for line in done.stdout.splitlines() if line.startswith("Tokens:")))
