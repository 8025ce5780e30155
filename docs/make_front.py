"""Writes the tables of README.md that say what is so: what each transport can do, and what was measured."""

import re
from pathlib import Path

from trunkline.opening import transport_class

ROOT = Path(__file__).resolve().parent.parent
TRANSPORTS = {
    "memory": "memory",
    "embedded": "embedded",
    "redis": "Redis, Valkey",
    "postgres": "PostgreSQL",
    "nats": "NATS",
}
POWERS = {
    "leases": "[at least once, and later](docs/workers.md): leases, retries, dead letters, delayed messages",
    "history": "[history](docs/history.md): a client that comes back gets what it missed",
    "records": "[presence](docs/presence.md): who is there, who comes and goes",
}
#: Contestants of the chat, as docs/benchmarks.md calls them -> as a reader knows them.
CHAT = {
    "relay on embedded": "Trunkline, embedded, [relay](docs/consumers.md#the-same-frame-for-everyone)",
    "relay on redis": "Trunkline, Redis, relay",
    "handler on embedded": "Trunkline, embedded, a handler for each socket",
    "handler on redis": "Trunkline, Redis, a handler for each socket",
    "channels on redis": "Django Channels on Trunkline, Redis",
    "channels on core": "Django Channels on channels_redis",
    "channels on pubsub": "Django Channels on channels_redis, pub/sub",
    "socket.io": "socket.io with its Redis adapter (Node)",
}
FIGURES = {"deliveries/s": "deliveries/s", "server cpu µs/delivery": "server CPU, µs/delivery"}
MISHAPS = ("lost", "doubled", "reordered")


def promises() -> str:
    features = {name: transport_class(name).features for name in TRANSPORTS}
    rows = [
        f"| | {' | '.join(TRANSPORTS.values())} |\n|---|{':-:|' * len(TRANSPORTS)}\n",
        "| the [promises](docs/promises.md), each a test: delivery, order, capacity, cancellation, … |",
        f"{' ✓ |' * (len(TRANSPORTS) - 1)} [✓](docs/nats.md#what-it-promises) |\n",
    ]
    for feature, words in POWERS.items():
        rows += [
            f"| {words} | {' | '.join('✓' if feature in found else '' for found in features.values())} |\n"
        ]
    return "".join(rows)


def measured() -> str:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    section = re.search(r"^## chat: (.*?)(?=^## |\Z)", text, re.M | re.S)
    assert section is not None, "docs/benchmarks.md has no chat: make bench ARGS=chat"  # noqa: S101
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in section[1].splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]
    columns = {name: number for number, name in enumerate(table[0])}
    rows = [f"| | {' | '.join(FIGURES.values())} | lost, doubled, reordered |\n|---|---:|---:|---:|\n"]
    for row in table[1:]:
        if row[0] in CHAT:
            figures = [row[columns[name]].partition(" ")[0] for name in FIGURES]
            mishaps = ", ".join(row[columns[name]] for name in MISHAPS)
            rows += [f"| {CHAT[row[0]]} | {' | '.join(figures)} | {mishaps} |\n"]
    return "".join(rows)


def page() -> str:
    text = (ROOT / "README.md").read_text()
    for name, made in (("promises", promises()), ("measured", measured())):
        text, count = re.subn(
            rf"(<!-- {name}: by make docs -->\n\n).*?(\n<!-- end -->)",
            lambda found, made=made: found[1] + made + found[2],  # type: ignore[misc]
            text,
            flags=re.S,
        )
        assert count == 1, f"README.md lacks the place for {name}"  # noqa: S101
    return text


if __name__ == "__main__":
    (ROOT / "README.md").write_text(page())
