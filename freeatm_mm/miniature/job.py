"""Long jobs made of the project's own tools: each command once, stopped and resumed at will."""
from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

from freeatm_mm.files import atomic_write
from freeatm_mm.visualization.page import Step

__all__ = ['Job']


class Job:
    """Runs commands, each once, and remembers how long each took.

    Several threads may run commands of one job side by side.

    Args:
        out: Folder of the job; what is done is noted in its ``steps.json``.

    Attributes:
        steps: What was run, or had been run before, in order of ending.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / 'steps.json'
        self.done = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.steps: list[Step] = []
        self._lock = threading.Lock()

    def run(self, what: str, tool: str | Path, *arguments: object) -> None:
        """Run a tool, unless this very command has ended well before; stop if it fails.

        Args:
            what: What it does, for the reader.
            tool: The tool.
            arguments: Its command line.

        Raises:
            SystemExit: If the tool fails.
        """
        command = ['python', *map(str, (tool, *arguments))]
        line = shlex.join(command)
        if line not in self.done:
            print(f'\n== {what}\n{line}', flush=True)
            start = time.monotonic()
            code = subprocess.run([sys.executable, *command[1:]], check=False).returncode
            if code:
                sys.exit(f'"{what}" failed (exit code {code}); the message is above. Once mended, '
                         'start the same command again: it goes on from here.')
            with self._lock:
                self.done[line] = time.monotonic() - start
                with atomic_write(self.path) as file:
                    file.write(json.dumps(self.done, indent=1).encode())
        with self._lock:
            self.steps.append(Step(what, line, self.done[line]))
