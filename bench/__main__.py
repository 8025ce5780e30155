"""``python -m bench``: play every scenario by every contestant, in turn, and print the tables."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import functools
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from .chat import CHATS, SERVING, Chat, chat, versions
from .contestants import CONTESTANTS, Contestant
from .plots import draw
from .report import AGAIN, TITLES, Results, explanation, machine
from .scenarios import QUICK, SCENARIOS, Figures, Scale, run

#: Scenarios with contestants of their own: servers of a chat instead of layers.
END_TO_END = {"chat": CHATS, "serving": SERVING}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    listed = "; ".join(f"{name}: {scenario}" for name, scenario in TITLES.items())
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=listed)
    parser.add_argument(
        "--layers", default=",".join(CONTESTANTS), help="the contestants (default: %(default)s)"
    )
    parser.add_argument("--base", help="the contestant that ratios are to (default: the first)")
    parser.add_argument("--rounds", type=int, default=3, help="at most (default: 3)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=20.0,
        help="it may take, about; each scenario has a round (default: 20)",
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="how long a throughput is measured (default: 1)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny numbers: does it run?")
    parser.add_argument("--uvloop", action="store_true", help="for all contestants")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every figure of every round")
    parser.add_argument(
        "--merge", action="store_true", help="keep what the file of --json holds of other scenarios"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables")
    parser.add_argument(
        "--plots", type=Path, metavar="FOLDER", help="a picture of each scenario, as PNG and SVG"
    )
    chosen = parser.parse_args()
    if chosen.merge and not chosen.json:
        parser.error("--merge needs --json FILE, which holds what is kept")
    chosen.scenarios = chosen.scenarios or list(TITLES)
    chosen.layers = chosen.layers.split(",")
    for name in chosen.scenarios:
        if name not in TITLES:
            parser.error(f"no scenario {name!r}; there are: {', '.join(TITLES)}")
    for name in [*chosen.layers, chosen.base or chosen.layers[0]]:
        if name not in CONTESTANTS:
            parser.error(f"no layer {name!r}; there are: {', '.join(CONTESTANTS)}")
    return chosen


@dataclasses.dataclass(frozen=True)
class Entry:
    """One who takes part in a scenario."""

    play: Callable[[], Awaitable[Figures | str]]
    #: In the first round only.
    once: bool = False

    async def plays(self) -> Figures | str:
        """Its figures, or why there are none: whatever goes wrong with one is not the end for the others."""
        try:
            return await self.play()
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def present(entrants: Sequence[Contestant | Chat]) -> list[str]:
    """Those that can take part here; says why another cannot."""
    found = []
    for entrant in entrants:
        missing = entrant.missing()
        if missing is None:
            found.append(entrant.name)
        else:
            WITHOUT.append(f"without {entrant.name}: {missing}")
            print(WITHOUT[-1], flush=True)
    return found


WITHOUT: list[str] = []


def entries(scenario: str, names: list[str], scale: Scale, chosen: argparse.Namespace) -> dict[str, Entry]:
    """Everybody who takes part in a scenario."""
    if scenario in END_TO_END:
        chats = END_TO_END[scenario]
        limits = (3 * scale.seconds, scale.sockets, scale.patience, scale.limit)
        return {
            name: Entry(functools.partial(chat, chats[name], *limits), chats[name].once)
            for name in present(list(chats.values()))
        }
    played = SCENARIOS[scenario]
    return {
        title: Entry(functools.partial(run, played, contestant, scale, chosen.uvloop), contestant.once)
        for name in names
        for title, contestant in played.rows(CONTESTANTS[name]).items()
    }


async def play(chosen: argparse.Namespace) -> None:
    names = present([CONTESTANTS[name] for name in chosen.layers])
    if not names:
        raise SystemExit("nobody can take part here")
    base = chosen.base if chosen.base in names else names[0]
    scale = QUICK if chosen.quick else dataclasses.replace(Scale(), seconds=chosen.seconds)
    about = [*machine([CONTESTANTS[name] for name in names], chosen.uvloop), versions()]
    results = Results(base, about)
    if chosen.merge and chosen.json.exists():
        results.keep(json.loads(chosen.json.read_text()))
    print("\n".join([*results.about, explanation(base)]), flush=True)
    end = time.monotonic() + 60 * chosen.minutes
    for place, scenario in enumerate(chosen.scenarios):
        entrants = entries(scenario, names, scale, chosen)
        if not entrants:
            continue
        its_base = base if base in entrants else next(iter(entrants))
        results.bases[scenario] = its_base
        results.rounds.pop(scenario, None)
        began = time.monotonic()
        share = (end - began) / (len(chosen.scenarios) - place)
        rounds, seconds = 0, 0.0
        while rounds < chosen.rounds and (not rounds or time.monotonic() - began + seconds <= share):
            seconds = 0.0  # what another round will take
            for name, entry in [*entrants.items(), (AGAIN, entrants[its_base])]:
                if results.failed(scenario, name) or (rounds and entry.once):
                    continue  # it would only take its time again
                its_began = time.monotonic()
                results.add(scenario, name, await entry.plays())
                if not (entry.once or results.failed(scenario, name)):
                    seconds += time.monotonic() - its_began
            rounds += 1
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        several = f"{rounds} round{'s' if rounds > 1 else ''} of {scale.seconds:g} s"
        results.notes[scenario] = f"{several} in {time.monotonic() - began:.0f} s; load at the end {load}"
        print(f"\n{results.text(scenario)}\n{results.notes[scenario]}", flush=True)
        results.about = [*about, *WITHOUT]
        write(results, chosen)  # now: a long run that is ended leaves what it has found


def write(results: Results, chosen: argparse.Namespace) -> None:
    pictures = draw(results, chosen.plots) if chosen.plots else {}
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(dataclasses.asdict(results), indent=1) + "\n")
    if chosen.markdown:
        chosen.markdown.write_text(results.markdown(pictures))


def main() -> None:
    chosen = arguments()
    # Ended from outside, it still ends its servers and players.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    asyncio.run(play(chosen))


if __name__ == "__main__":
    main()
