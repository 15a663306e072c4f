"""How long a person waits at the prompt: `--help`, `plan` and a cold `ask` on the sample clip, each its own process.

    python benchmarks/startup.py [--runs 7]
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import report

SAMPLE = report.ROOT / "vidllm" / "builtin" / "sample" / "sample.mp4"
QUESTION = "what happens at 0:30?"
COMMANDS: dict[str, tuple[list[str], float]] = {
    "vidllm --help": (["--help"], 0.2),
    "vidllm plan CLIP QUESTION": (["plan", str(SAMPLE), QUESTION], 0.6),
    "vidllm ask CLIP QUESTION": (["ask", str(SAMPLE), QUESTION], 6.0),
}
"""What is started, and the seconds it should stay under on two cores."""


def main() -> None:
    """Time every command `--runs` times after one run that warms the disk."""
    parser = report.parser(__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    vidllm = shutil.which("vidllm", path=str(Path(sys.executable).parent)) or "vidllm"
    rows: list[report.Row] = []
    for name, (words, limit) in COMMANDS.items():
        seconds = [run([vidllm, *words]) for _ in range(runs + 1)][1:]
        rows.append({"command": name, "median s": median(seconds), "worst s": max(seconds), "aim s": limit})
    report.write("startup", "From the prompt to the end of the answer", rows)


def run(command: list[str]) -> float:
    """Wall seconds of one process that must succeed; what it imports is compiled once, as Python does by itself."""
    told = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=told)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
