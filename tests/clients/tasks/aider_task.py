"""aider: a question about a file, asked on the command line; and a model that there is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

name = f"openai/{os.environ['MODEL']}"
Path("greeting.py").write_text('def greet(name):\n    return f"Hello, {name}!"\n')
# A model this small does not know when to end. JSON is YAML.
settings = [{"name": name, "extra_params": {"max_tokens": 200, "stop": ["\n\n"]}}]
Path("models.yml").write_text(json.dumps(settings))
options = ["--chat-mode", "ask", "--model-settings-file", "models.yml", "--map-tokens", "0", "--timeout", "600"]
options += ["--no-git", "--no-auto-commits", "--yes-always", "--no-check-update", "--no-show-model-warnings"]
options += ["--no-analytics", "--no-pretty", "--no-detect-urls"]


def ask(model: str, *more: str) -> str:
    command = [sys.executable, "-m", "aider", "--model", model, *options, *more, "--message", "What does greet return?"]
    done = subprocess.run(
        [*command, "greeting.py"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


for more in ((), ("--no-stream",)):
    said = ask(name, *more)
    assert "Tokens:" in said and "received" in said, said
    print(next(line for line in said.splitlines() if line.startswith("Tokens:")))
refused = ask("openai/nobody")
assert "NotFoundError" in refused and "which serves" in refused, refused
