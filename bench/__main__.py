"""``python -m bench``: play every scenario by every contestant, in turn, and print the tables."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import signal
import time
from pathlib import Path

from .contestants import CONTESTANTS, Contestant
from .report import AGAIN, Results, explanation, machine
from .scenarios import QUICK, SCENARIOS, Scale, run


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    listed = "; ".join(f"{name}: {scenario.title}" for name, scenario in SCENARIOS.items())
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=listed)
    parser.add_argument(
        "--layers", default=",".join(CONTESTANTS), help="the contestants (default: %(default)s)"
    )
    parser.add_argument("--base", help="the contestant that ratios are to (default: the first)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="how long a throughput is measured (default: 1)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny numbers: does it run?")
    parser.add_argument("--uvloop", action="store_true", help="for all contestants")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every figure of every round")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables")
    chosen = parser.parse_args()
    chosen.scenarios = chosen.scenarios or list(SCENARIOS)
    chosen.layers = chosen.layers.split(",")
    for name in chosen.scenarios:
        if name not in SCENARIOS:
            parser.error(f"no scenario {name!r}; there are: {', '.join(SCENARIOS)}")
    for name in [*chosen.layers, chosen.base or chosen.layers[0]]:
        if name not in CONTESTANTS:
            parser.error(f"no layer {name!r}; there are: {', '.join(CONTESTANTS)}")
    return chosen


def present(layers: list[str]) -> list[Contestant]:
    """The contestants that can take part here; says why another cannot."""
    found = []
    for contestant in [CONTESTANTS[name] for name in layers]:
        missing = contestant.missing()
        if missing is None:
            found.append(contestant)
        else:
            print(f"without {contestant.name}: {missing}")
    return found


async def play(chosen: argparse.Namespace) -> Results:
    contestants = present(chosen.layers)
    if not contestants:
        raise SystemExit("nobody can take part here")
    names = [contestant.name for contestant in contestants]
    base = CONTESTANTS[chosen.base if chosen.base in names else names[0]]
    scale = QUICK if chosen.quick else dataclasses.replace(Scale(), seconds=chosen.seconds)
    results = Results(base.name, machine(contestants, chosen.uvloop))
    print("\n".join([*results.about, explanation(base.name)]), flush=True)
    began = time.monotonic()
    for scenario in chosen.scenarios:
        for _ in range(chosen.rounds):
            for name, contestant in [*zip(names, contestants, strict=True), (AGAIN, base)]:
                if results.failed(scenario, name):
                    continue  # it would only take its time again
                results.add(scenario, name, await run(SCENARIOS[scenario], contestant, scale, chosen.uvloop))
        print(f"\n{results.text(scenario)}", flush=True)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    results.about.append(
        f"{chosen.rounds} rounds of {scale.seconds:g} s in {time.monotonic() - began:.0f} s; load at the end {load}"
    )
    print(f"\n{results.about[-1]}")
    return results


def main() -> None:
    chosen = arguments()
    # Ended from outside, it still ends its servers and players.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = asyncio.run(play(chosen))
    if chosen.json:
        chosen.json.write_text(json.dumps(dataclasses.asdict(results), indent=1))
    if chosen.markdown:
        chosen.markdown.write_text(results.markdown())


if __name__ == "__main__":
    main()
