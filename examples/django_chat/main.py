"""A project of Django Channels on Trunkline: two servers and a worker that find each other, no Redis. In this folder:

python main.py

Then open http://127.0.0.1:8000/ and http://127.0.0.1:8001/. This starts what are services of their own elsewhere: `daphne
chatsite.asgi:application`, as often as you like, and `python manage.py trunkline worker thumbnails`.
"""

import argparse
import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path


def start(*words: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *words], cwd=Path(__file__).parent)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--port", type=int, default=8000, help="of the first server; the second has the next one"
    )
    first = parser.parse_args().port
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    if start("manage.py", "migrate", "--verbosity", "0").wait():
        sys.exit(1)
    ports = [first, first + 1] if first else [0, 0]  # 0: any that is free
    programs = [start("-m", "daphne", "--port", str(port), "chatsite.asgi:application") for port in ports]
    programs.append(start("manage.py", "trunkline", "worker", "thumbnails"))
    try:
        with contextlib.suppress(KeyboardInterrupt):
            while all(program.poll() is None for program in programs):
                time.sleep(0.2)
    finally:
        for program in programs:
            program.terminate()
        for program in programs:
            try:
                program.wait(5)
            except subprocess.TimeoutExpired:
                program.kill()


if __name__ == "__main__":
    main()
