"""The benchmarks run, and see what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from bench.__main__ import Entry
from bench.chat import CHATS, SERVING, Chat, chat
from bench.contestants import CONTESTANTS
from bench.players import STRIDE, faults, pooled
from bench.report import AGAIN, Results
from bench.scenarios import FAULTS, QUICK, SCENARIOS, run

ROOT = Path(__file__).parents[2]
# A crowd whose names do not fit one buffer of a pipe.
TINY = replace(QUICK, seconds=0.02, crowd=1500, rooms=5, idle=0.05, waiting=10, burst=2, local=10)


@pytest.mark.parametrize("layer", ["memory", "embedded"])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_every_scenario_measures_and_verifies(scenario: str, layer: str) -> None:
    """Each gives figures, and no message is lost, doubled, reordered or refused."""
    if not SCENARIOS[scenario].takes(CONTESTANTS[layer]):
        layer = "redis"
    for contestant in SCENARIOS[scenario].rows(CONTESTANTS[layer]).values():
        figures = await run(SCENARIOS[scenario], contestant, TINY)
        assert isinstance(figures, dict), figures
        assert {key: figures[key] for key in FAULTS if figures.get(key)} == {}
        rates = [value for key, value in figures.items() if key.endswith(("/s", "p50 µs", "p99 µs"))]
        assert all(rate > 0 for rate in rates)
        if scenario not in ("idle", "waiting", "server", "subscribers"):
            assert rates


async def test_the_floor_shares_a_queue() -> None:
    """The bare loop takes part in the queue, and brings each job to one worker."""
    figures = await run(SCENARIOS["queue"], CONTESTANTS["bare"], TINY)
    assert isinstance(figures, dict), figures
    assert {key: figures[key] for key in FAULTS if figures[key]} == {}
    assert figures["messages/s"] > 0


@pytest.mark.parametrize("name", ["relay on embedded", "handler on embedded", "channels on embedded"])
async def test_the_chat_measures_and_verifies(name: str) -> None:
    """Every message reaches every websocket once and in order, over two server processes."""
    figures = await chat(CHATS[name], 0.1, 10, 5.0, 60)
    assert isinstance(figures, dict), figures
    assert {key: figures[key] for key in FAULTS if figures.get(key)} == {}
    assert figures["deliveries/s"] > 0
    assert figures["p50 ms at half"] > 0


async def test_a_chat_that_does_not_start_says_why() -> None:
    """What its server complained of stands in the result."""
    said = await chat(Chat("nobody", "folder"), 0.1, 2, 1.0, 60)
    assert isinstance(said, str)
    assert "KeyError: 'nobody'" in said


def test_who_cannot_take_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Node there is no socket.io, and without its package no picows: that is said, not skipped."""
    monkeypatch.setenv("PATH", "")
    assert "no node here" in (CHATS["socket.io"].missing() or "")
    monkeypatch.setitem(sys.modules, "picows", None)
    assert "picows" in (SERVING["relay on embedded, picows"].missing() or "")


async def test_one_that_breaks_is_not_the_end_for_the_others() -> None:
    """Whatever is raised while one plays stands in the result."""

    async def play() -> str:
        raise ValueError("no line of JSON")

    assert await Entry(play).plays() == "ValueError: no line of JSON"


def test_mishaps_are_counted() -> None:
    """What is missing, what came twice, what nobody sent this time and what overtook another of its sender."""
    a, b = STRIDE, 2 * STRIDE
    expected = {a, a + 1, a + 2, b, b + 1}
    assert faults([a, b, a + 1, b + 1, a + 2], expected) == [0, 0, 0]
    assert faults([a, a + 2, a + 1, b], expected) == [1, 0, 1]
    assert faults([a, a, a + 1, a + 2, b, b + 1, a - 1], expected) == [0, 2, 0]
    assert pooled([[a, a + 2, b], [a + 1, b + 1]], expected) == [0, 0, 0]
    assert pooled([[a, a + 2, b], [a + 2, b + 1]], expected) == [1, 1, 0]
    assert pooled([[a + 2, a], [a + 1, b, b + 1]], expected) == [0, 0, 1]


async def test_a_layer_that_loses_is_found_out() -> None:
    """A layer whose processes do not meet has lost every message to the other process."""
    apart = replace(CONTESTANTS["memory"], alone=False)
    figures = await run(SCENARIOS["hundred"], apart, replace(TINY, patience=0.3))
    assert isinstance(figures, dict), figures
    assert figures["lost"] >= 100
    assert figures["messages/s"] == 0


async def test_a_player_that_fails_says_why() -> None:
    """What a layer raises in a player's process stands in the result."""
    said = await run(SCENARIOS["hundred"], replace(CONTESTANTS["embedded"], name="nobody"), TINY)
    assert isinstance(said, str)
    assert "KeyError: 'nobody'" in said


def test_tables_hold_medians_ratios_and_sums() -> None:
    """A table has the median of each measure with its ratio to the base, sums of mishaps, and what failed."""
    results = Results("core", ["here"])
    for speed, cost, lost in ((1.0, 20.0, 0.0), (2.0, 10.0, 1.0), (9.0, 30.0, 0.0)):
        results.add("group", "core", {"messages/s": speed, "cpu µs/delivery": cost, "lost": lost})
        results.add("group", "memory", {"messages/s": speed * 50, "cpu µs/delivery": cost / 2, "lost": lost})
    results.add("group", AGAIN, "no result in 60 s")
    assert results.failed("group", AGAIN)
    assert not results.failed("group", "memory")
    head, core, memory, again = results.table("group")
    assert head == ["group", "messages/s", "cpu µs/delivery", "lost"]
    assert core == ["core", "2 (1x)", "20 (1x)", "1"]
    assert memory == ["memory", "100 (50x)", "10 (2x)", "1"]
    assert again == [AGAIN, "-", "-", "-", "1 of 1 failed: no result in 60 s"]
    assert "| memory | 100 (50x) | 10 (2x) | 1 |" in results.markdown()


def test_what_channels_costs_is_measured() -> None:
    """Each layer brings every message to each of Channels' consumers, or there is no figure."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.dispatch", "nothing", "memory", "--rounds", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    names, figures = zip(
        *[(line.split()[0], float(line.split()[2])) for line in done.stdout.splitlines()], strict=True
    )
    assert names == ("nothing", "memory")
    assert min(figures) > 0


def test_the_command_runs(tmp_path: Path) -> None:
    """``python -m bench`` prints the tables and writes them to the files asked for."""
    files = ["--json", str(tmp_path / "all.json"), "--markdown", str(tmp_path / "all.md"), "--merge"]
    files += ["--plots", str(tmp_path / "plots")]
    kept = Results("core", [], rounds={"group": {"core": [{"messages/s": 7.0}]}})
    (tmp_path / "all.json").write_text(json.dumps(asdict(kept)))
    done = subprocess.run(
        [sys.executable, "-m", "bench", "direct", "--layers", "memory", "--rounds", "1", "--quick", *files],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert AGAIN in done.stdout
    assert '"p50 \\u00b5s"' in (tmp_path / "all.json").read_text()
    written = (tmp_path / "all.md").read_text()
    assert "| memory |" in written
    assert "| core | 7 (1x) |" in written
    assert "](plots/direct.png)" in written
    assert (tmp_path / "plots" / "direct.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "plots" / "direct.svg").read_text()
