"""How long `wsisam serve` takes from its start as a process to being ready, and how much memory that takes.

    python bench/start.py [--starts 3] [--json FILE] [FLAG ...]

Further flags are the service's. The first start is not counted: it converts networks where none are on disk yet.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from wsisam_service.commands.click_costs import announced_url, wait_ready


def start(flags: list[str]) -> dict[str, float]:
    """One start and end: seconds to listening and to ready, and the process's CPU seconds and peak memory in MB."""
    command = [sys.executable, "-m", "wsisam_service.cli", "serve", "--port", "0", *flags]
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            url = announced_url(process)
            listening = time.perf_counter() - begun
            wait_ready(url)
            ready = time.perf_counter() - begun
        finally:
            process.terminate()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    return {"listening_s": listening, "ready_s": ready, "cpu_s": cpu, "peak_mb": usage.ru_maxrss / 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options, flags = parser.parse_known_args()
    start(flags)
    samples = [start(flags) for _ in range(options.starts)]
    load = os.getloadavg()
    medians = {name: round(statistics.median(sample[name] for sample in samples), 2) for name in samples[0]}
    print(json.dumps(medians))
    if options.json:
        options.json.write_text(json.dumps({"about": {"load": load}, "starts": samples}, indent=1) + "\n")


if __name__ == "__main__":
    main()
