"""One failover after the other under a steady load of six processes; ``make soak`` runs more of them.

Three processes send to 50 groups, to each of three receivers and to a queue; three others receive. Groups and single
channels lose nothing, repeat nothing and keep their order; what the queue lost or repeated is what the new master cannot
have known; and nothing grows with the number of failovers.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from processes.player import Player
from sentinels import Watched, until
from servers import servers

#: How many; and on which kinds of server.
FAILOVERS = int(os.environ.get("TRUNKLINE_FAILOVERS", "3"))
KINDS = sorted(servers()) if FAILOVERS > 3 else sorted(servers())[-1:]

SENDERS, RECEIVERS, GROUPS = 3, 3, 50

#: Seconds that messages live: short, so that the servers' logs are full early, and do not grow any more.
EXPIRY = 10.0

#: Seconds that the replica may be behind besides what is planned, on a busy machine.
BEHIND = 1.0

#: Seconds for which the replica, and one receiver, hear nothing before the failover.
LAG = 0.7

#: Seconds that a failover may take, when a vote has to be repeated on a busy machine.
PATIENCE = 40.0

#: Seconds between two failovers, longer than the replay reaches back: what is sent again is kept anew for as long.
SPACING = 6.0 if FAILOVERS > 3 else 0.0

#: In turn: how the master is taken away, and whether the replica lags.
KILL, FREEZE, BY_HAND = "kill -9", "SIGSTOP", "SENTINEL FAILOVER"
PLAN = [(KILL, LAG), (FREEZE, 0.0), (BY_HAND, LAG), (KILL, 0.0), (FREEZE, LAG), (BY_HAND, 0.0)]

#: By how much it may grow from the second failover on: blocks that a process has in use, its size in bytes (what it
#: once took to read logs, it keeps), and bytes of the server's data.
BLOCKS, GROWTH, SERVER_GROWTH = 10_000, 16 << 20, 2 << 20


class Failover(NamedTuple):
    how: str
    lag: float
    #: When: on the clock of ``time.monotonic``, which all processes of a machine share.
    began: float
    ended: float
    #: The longest time without a delivery at any receiver.
    pause: float
    #: Of each process: blocks of memory in use, and bytes that it occupies.
    blocks: list[int]
    resident: list[int]
    #: Bytes of the server's data.
    server: int


class Run:
    """Six processes under load, and what came of it."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        arguments = json.dumps([watched.hosts, f"t{uuid.uuid4().hex[:10]}", EXPIRY])
        self.players: list[Player] = []
        try:
            for _ in range(SENDERS + RECEIVERS):
                self.players.append(Player(arguments, program="faults.failover_player"))
        except BaseException:
            self.end()
            raise
        self._senders, self._receivers = self.players[:SENDERS], self.players[SENDERS:]
        channels = [receiver.do("receive", GROUPS) for receiver in self._receivers]
        for number, sender in enumerate(self._senders):
            sender.do("send", number, GROUPS, channels)
        self.failovers: list[Failover] = []
        self._busy()

    def _all(self, question: str) -> list[Any]:
        return [player.do(question) for player in self.players]

    def _busy(self) -> None:
        """Wait until every receiver has heard some hundred more."""
        before = [receiver.do("heard") for receiver in self._receivers]
        pairs = list(zip(self._receivers, before, strict=True))
        until("all hear more", lambda: all(one.do("heard") > count + 300 for one, count in pairs), PATIENCE)

    def fail_over(self, how: str, lag: float) -> None:
        """Take the master away, wait until all work with the other one, and bring the first one back as its replica."""
        watched = self._watched
        master = watched.master
        (replica,) = [server for server in watched.servers if server is not master]
        deaf = self._receivers[len(self.failovers) % RECEIVERS]
        connected = self._all("reconnects")
        for receiver in self._receivers:
            receiver.do("silence")
        if lag:
            watched.cut_off(replica)
            deaf.do("lose_the_way")
            master.kill_clients(f"{deaf.do('node')}-commands")
            master.kill_clients(f"{deaf.do('node')}-pushes")
            time.sleep(lag)  # the fault itself
        began = time.monotonic()
        if how == KILL:
            master.kill()
        elif how == FREEZE:
            master.freeze()
        else:
            watched.sentinels[1].call("SENTINEL", "FAILOVER", watched.name)
        if lag:
            deaf.do("find_the_way")
        # One that was deaf comes back to the old master first, if that goes on.
        until("the sentinels name the replica", lambda: watched.port(1) == replica.port, PATIENCE)
        names = [f"trunkline-{player.do('node')}-" for player in self.players]
        until("all are there", lambda: all(_clients(replica).count(name) == 2 for name in names), PATIENCE)
        pairs = list(zip(self.players, connected, strict=True))
        until("all know", lambda: all(one.do("reconnects") > before for one, before in pairs), PATIENCE)
        ended = time.monotonic()
        self._busy()
        pause = max(receiver.do("silence") for receiver in self._receivers)
        watched.mend()
        time.sleep(
            max(ended + SPACING - time.monotonic(), 0)
        )  # a condition of the run, not a wait for something
        self._busy()
        memory = replica.call("INFO", "memory").decode()
        self.failovers.append(
            Failover(
                how,
                lag,
                began,
                ended,
                pause,
                self._all("blocks"),
                [_resident(player.pid) for player in self.players],
                int(memory.partition("used_memory_dataset:")[2].split()[0]),
            )
        )

    def settle(self) -> None:
        """Stop the senders; compare what they sent with what was heard."""
        self.sent = [sender.do("stop") for sender in self._senders]
        expected = self._expected()
        deadline = time.monotonic() + 15
        while True:
            accounts = [receiver.do("account") for receiver in self._receivers]
            self.lost = self.doubled = self.reordered = self.heard = 0
            for account, wanted in zip(accounts, expected, strict=True):
                for name, count in wanted.items():
                    last, holes, doubled, reordered = account["chains"].get(name, [0, 0, 0, 0])
                    self.lost += count - last + holes
                    self.doubled += doubled
                    self.reordered += reordered
                    self.heard += last - holes
            if not self.lost or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        self.gaps = [gap for account in accounts for gap in account["gaps"]]
        self.missed = sum(account["missed"] for account in accounts)
        self._settle_jobs()

    def _expected(self) -> list[dict[str, int]]:
        """For each receiver: how many messages each chain has."""
        return [
            {
                name: count
                for number, sent in enumerate(self.sent)
                for name, count in (
                    (f"{number} to groups", sent["groups"]),
                    (f"{number} to us", sent["direct"][place]),
                )
            }
            for place in range(RECEIVERS)
        ]

    def _settle_jobs(self) -> None:
        self.jobs = {int(number): at for sender in self._senders for number, at in sender.do("jobs")}
        deadline = time.monotonic() + 3
        while True:
            taken = [(int(number), at) for receiver in self._receivers for number, at in receiver.do("jobs")]
            counts = Counter(number for number, _ in taken)
            self.jobs_lost = [at for number, at in self.jobs.items() if number not in counts]
            if not self.jobs_lost or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        first: dict[int, float] = {}
        for number, at in taken:
            first[number] = min(at, first.get(number, at))
        self.jobs_doubled = [first[number] for number, count in counts.items() for _ in range(count - 1)]

    def excused(self, at: float) -> bool:
        """Whether the new master may not have known what happened then."""
        return any(one.began - one.lag - BEHIND < at < one.ended + BEHIND for one in self.failovers)

    def tell(self) -> None:
        """For ``pytest -s``: figures."""
        print(f"\n{self._watched.kind}, {len(self.failovers)} failovers:")
        for one in self.failovers:
            sizes = [f"{size / 2**20:.0f}" for size in one.resident]
            lost, doubled = (
                sum(one.began - one.lag - BEHIND < at < one.ended + BEHIND for at in times)
                for times in (self.jobs_lost, self.jobs_doubled)
            )
            print(
                f"  {one.how}, replica {one.lag} s behind: longest silence {one.pause:.2f} s; "
                f"jobs lost {lost}, doubled {doubled}; "
                f"processes {' '.join(sizes)} MB, {max(one.blocks)} blocks, data {one.server / 2**20:.1f} MB"
            )
        print(
            f"  {self.heard} deliveries: {self.lost} lost, {self.doubled} doubled, {self.reordered} reordered, "
            f"{len(self.gaps)} gaps; {len(self.jobs)} jobs: {len(self.jobs_lost)} lost, "
            f"{len(self.jobs_doubled)} doubled"
        )

    def end(self) -> None:
        for player in self.players:
            player.end()


def _clients(server: Any) -> str:
    text: str = server.call("CLIENT", "LIST").decode()
    return text


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(params=KINDS)
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(request.param, tmp_path / "watched", failover_timeout=2000)
    yield watched
    watched.kill()


@pytest.mark.timeout(60 + 40 * FAILOVERS)
def test_one_failover_after_the_other(watched: Watched) -> None:
    """0 lost, 0 doubled, 0 reordered; jobs at the moment of a failover only; no memory grows."""
    run = Run(watched)
    try:
        for number in range(FAILOVERS):
            run.fail_over(*PLAN[number % len(PLAN)])
        run.settle()
        run.tell()
    finally:
        run.end()
    assert (run.lost, run.doubled, run.reordered, run.missed, run.gaps) == (0, 0, 0, 0, [])
    assert not [error for sent in run.sent for error in sent["failed"]]
    assert all(run.excused(at) for at in (*run.jobs_lost, *run.jobs_doubled))
    settled, last = run.failovers[1], run.failovers[-1]
    for before, after in zip(settled.blocks, last.blocks, strict=True):
        assert after - before < BLOCKS, [one.blocks for one in run.failovers]
    for before, after in zip(settled.resident, last.resident, strict=True):
        assert after - before < GROWTH, [one.resident for one in run.failovers]
    assert last.server - settled.server < SERVER_GROWTH, [one.server for one in run.failovers]
