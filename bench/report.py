"""The figures of all rounds as tables: medians, ratios to one contestant, and the same one twice as the noise."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .contestants import CONTESTANTS, Contestant, server_command
from .scenarios import FAULTS, SCENARIOS, Figures

__all__ = ["AGAIN", "TITLES", "Results", "machine"]

#: What each scenario is.
TITLES = {
    **{name: scenario.title for name, scenario in SCENARIOS.items()},
    "chat": "end to end: a chat room of 200 websockets over two server processes",
    "serving": "end to end: the same, by what serves the websockets",
}

#: The name under which the base contestant takes part a second time.
AGAIN = "(base again)"


def machine(contestants: list[Contestant], uvloop: bool) -> list[str]:
    """What was measured, and on what."""
    versions: dict[str, str] = {}
    for contestant in contestants:
        versions |= contestant.versions()
    lines = [
        f"{processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        f"Python {platform.python_version()}, {'uvloop' if uvloop else 'asyncio'}",
        ", ".join(f"{package} {version}" for package, version in sorted(versions.items())),
    ]
    if any(contestant.needs == "redis" for contestant in contestants):
        told = subprocess.run([server_command(), "--version"], capture_output=True, text=True, check=True)
        lines.append(" ".join(told.stdout.split()[:3]))
    return lines


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except FileNotFoundError:
        pass
    return platform.processor() or platform.machine()


@dataclass
class Results:
    """Every round of every contestant in every scenario."""

    base: str
    about: list[str]
    #: Scenarios whose ratios are to somebody else.
    bases: dict[str, str] = field(default_factory=dict)
    #: Scenario -> contestant -> its rounds: figures, or why there are none.
    rounds: dict[str, dict[str, list[Figures | str]]] = field(default_factory=dict)

    #: For each scenario how much was played, and how busy the machine was.
    notes: dict[str, str] = field(default_factory=dict)

    def keep(self, earlier: dict[str, Any]) -> None:
        """Take over the scenarios of an earlier run."""
        self.rounds |= earlier["rounds"]
        self.bases |= {**dict.fromkeys(earlier["rounds"], earlier["base"]), **earlier["bases"]}
        self.notes |= earlier["notes"]

    def add(self, scenario: str, contestant: str, found: Figures | str) -> None:
        self.rounds.setdefault(scenario, {}).setdefault(contestant, []).append(found)

    def failed(self, scenario: str, contestant: str) -> bool:
        return any(isinstance(found, str) for found in self.rounds.get(scenario, {}).get(contestant, []))

    def table(self, scenario: str) -> list[list[str]]:
        """A line for the head and one for each contestant."""
        rows = self.rounds[scenario]
        together = {name: combined(rounds) for name, rounds in rows.items()}
        columns = list(dict.fromkeys(key for figures in together.values() for key in figures))
        columns = [key for key in columns if key not in FAULTS] + [key for key in FAULTS if key in columns]
        base = together.get(self.bases.get(scenario, self.base), {})
        table = [[scenario, *columns]]
        for name, figures in together.items():
            failures = [found for found in rows[name] if isinstance(found, str)]
            cells = [cell(key, figures.get(key), base.get(key)) for key in columns]
            if failures:
                cells = [
                    *cells,
                    f"{len(failures)} of {len(rows[name])} failed: {' '.join(failures[0].split())[-160:]}",
                ]
            table.append([name, *cells])
        return table

    def text(self, scenario: str) -> str:
        table = self.table(scenario)
        width = max(map(len, table))
        padded = [row + [""] * (width - len(row)) for row in table]
        widths = [max(map(len, column)) for column in list(zip(*padded, strict=True))[: len(table[0])]]
        lines = [f"{TITLES[scenario]}"]
        for row in table:
            first, *others = row
            cells = [first.ljust(widths[0]), *[c.rjust(w) for c, w in zip(others, widths[1:], strict=False)]]
            lines.append("  ".join([*cells, *row[len(widths) :]]).rstrip())
        return "\n".join(lines)

    def markdown(self, pictures: dict[str, str] | None = None) -> str:
        lines = ["# Benchmarks", "", *[f"- {line}" for line in self.about], "", explanation(self.base)]
        for scenario in [name for name in TITLES if name in self.rounds]:
            head, *rows = self.table(scenario)
            lines += ["", f"## {scenario}: {TITLES[scenario]}", ""]
            if self.bases.get(scenario, self.base) != self.base:
                lines += [f"Ratios are to {self.bases[scenario]}.", ""]
            if pictures and scenario in pictures:
                lines += [f"![{TITLES[scenario]}]({pictures[scenario]})", ""]
            lines += ["| " + " | ".join(["", *head[1:]]) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
            lines += ["| " + " | ".join(row) + " |" for row in rows]
            if scenario in self.notes:
                lines += ["", f"{self.notes[scenario]}."]
        return "\n".join(lines) + "\n"

    def measured(self, scenario: str) -> tuple[str, dict[str, list[float]]]:
        """The first measure of a scenario, and by contestant what each round gave."""
        rows = self.rounds[scenario]
        key = self.table(scenario)[0][1]
        found = {
            name: [found[key] for found in rounds if not isinstance(found, str) and key in found]
            for name, rounds in rows.items()
        }
        return key, {name: values for name, values in found.items() if values}


def explanation(base: str) -> str:
    alone = ", ".join(name for name, contestant in CONTESTANTS.items() if contestant.alone)
    once = ", ".join(name for name, contestant in CONTESTANTS.items() if contestant.once)
    return (
        f"Medians of the rounds; in brackets how many times better than {base} (2.0x is twice as fast, or half the cost), "
        f"and {AGAIN} is the noise. Mishaps are sums over the rounds; full counts sends retried on a full channel. "
        f"bare is the floor: a loop that has the server do what redis has it do, and knows no capacity and no outage. "
        f"{alone} play all parts in one process; {once} play in the first round only, as some chats."
    )


def combined(rounds: list[Figures | str]) -> Figures:
    """The median of each measure, the sum of each count of mishaps."""
    good = [found for found in rounds if not isinstance(found, str)]
    keys = list(dict.fromkeys(key for found in good for key in found))
    return {
        key: (sum if key in FAULTS else statistics.median)([found[key] for found in good if key in found])
        for key in keys
    }


def cell(key: str, value: float | None, base: float | None) -> str:
    if value is None:
        return "-"
    if key in FAULTS:
        return f"{value:,.0f}"
    shown = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if not base or not value or min(base, value) < 0:
        return shown
    better = value / base if key.endswith("/s") else base / value
    return f"{shown} ({better:,.0f}x)" if better >= 10 else f"{shown} ({better:.2g}x)"
