"""Presence between real processes, one of which is killed and one cut off: with the leases that everybody has."""

import os
import signal
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from processes.player import Player
from servers import Server, servers

#: Seconds within which the members of a killed process are gone, as docs/presence.md promises.
PROMISED = 15.0


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """One layer of each kind: they are tried at once, for a lease takes its time."""
    started = [Server(kind, tmp_path_factory.mktemp(kind)) for kind in sorted(servers())]
    folder: Path = tmp_path_factory.mktemp("embedded")
    yield [f"embedded://{folder}/layer", *[server.url for server in started]]
    for server in started:
        server.kill()


def kill_one(url: str) -> float:
    """Ann and Bob are on three processes; two of these are killed, then a third is stopped for a while."""
    url = f"{url}?prefix=p{uuid.uuid4().hex[:12]}"
    players = [Player(url) for _ in range(4)]
    try:
        watcher, killed, doomed, stays = players
        channel = watcher.do("watch", "room")
        watcher.do("present", "room", "zoe")
        killed.do("present", "room", "ann", "ann", "bob")
        doomed.do("present", "room", "ann", "cyd")
        stays.do("present", "room", "bob")
        assert sorted(watcher.do("who", "room")) == sorted(stays.do("who", "room"))
        assert len(watcher.do("who", "room")) == 7
        at = time.time()
        for player in (killed, doomed):
            os.kill(player.pid, signal.SIGKILL)
        deadline = at + 4 * PROMISED
        left: list[list[object]] = []
        while len(left) < 2 and time.time() < deadline:
            time.sleep(0.1)
            left = [event for event in watcher.do("heard", channel) if event[0] == "presence.leave"]
        assert sorted(user for _, user, _ in left) == ["ann", "cyd"]
        assert sorted(user for user, _ in stays.do("who", "room")) == ["bob", "zoe"]
        # Stopped for less than a lease: nobody leaves, nobody joins.
        os.kill(stays.pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(stays.pid, signal.SIGCONT)
        assert sorted(user for user, _ in stays.do("who", "room")) == ["bob", "zoe"]
        events = [tuple(event[:2]) for event in watcher.do("heard", channel)]
        assert sorted(events) == sorted(
            [("presence.join", user) for user in ("ann", "bob", "cyd", "zoe")]
            + [("presence.leave", user) for user in ("ann", "cyd")]
        )
        return max(float(str(when)) for *_, when in left) - at
    finally:
        for player in players:
            player.process.kill()
            player.end()


def test_a_killed_process_leaves_within_its_lease(urls: list[str]) -> None:
    """kill -9: its users leave, once each, within 15 seconds; a user who is elsewhere too stays; a stop is no death."""
    with ThreadPoolExecutor(len(urls)) as pool:
        took = list(pool.map(kill_one, urls))
    assert max(took) < PROMISED + 5, took  # a busy machine may need a little longer to be told
