"""Time of `bitladder --help` against an empty Typer program's `--help`, in alternation, as whole processes.

python benchmarks/help.py [ROUNDS]
"""

import statistics
import subprocess
import sys
import time

EMPTY = """
import typer
app = typer.Typer()
@app.callback()
def main() -> None: ...
@app.command()
def one() -> None: ...
app()
"""


def wall_s(command: list[str]) -> float:
    """Seconds from start to end of one process."""
    started = time.perf_counter()
    subprocess.run([*command, "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    commands = {"bitladder": [sys.executable, "-m", "bitladder"], "empty": [sys.executable, "-c", EMPTY]}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(wall_s(command))
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    print(f"bitladder {medians['bitladder']:.3f} s, empty {medians['empty']:.3f} s")
    print(f"ratio {medians['bitladder'] / medians['empty']:.2f}")


if __name__ == "__main__":
    main()
