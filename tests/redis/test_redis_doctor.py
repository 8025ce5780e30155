"""`trunkline doctor` on servers that are well, ill, closed or not there."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from frameworks.programs import environment
from servers import Server, free_port
from trunkline.layers import RedisChannelLayer
from trunkline.testing import Link
from trunkline.testing.proxy import TcpProxy
from trunkline.transport import Finding
from trunkline.transports.redis import RedisTransport, doctor, permissions
from trunkline.transports.redis.hosts import Host
from trunkline.transports.redis.permissions import acl_line
from trunkline.transports.redis.topology import Names

ROOT = Path(__file__).parents[2]
SOURCE = Path(permissions.__file__).parent


class Findings:
    """What a doctor said, to be searched."""

    def __init__(self, found: list[Finding]) -> None:
        self.found = found

    def levels(self) -> list[str]:
        return [finding.level for finding in self.found]

    def one(self, level: str, what: str) -> Finding:
        """The finding of that level that says this."""
        mine = [f for f in self.found if f.level == level and re.search(what, f.what)]
        assert len(mine) == 1, f"{len(mine)} times {level} {what!r} in:\n" + "\n".join(map(str, self.found))
        return mine[0]


async def look(url: str, **options: Any) -> Findings:
    return Findings(await RedisTransport.examine(url, **options))


# Servers that are well


async def test_a_healthy_server(server: Server, prefix: str) -> None:
    """Nothing but good news, apart from persistence, which is off; and nothing is left behind."""
    found = await look(server.url, prefix=prefix)
    assert found.levels().count("error") == 0
    assert "appendonly yes" in found.one("warning", "persistence is off").fix
    assert found.levels().count("warning") == 1
    found.one("ok", rf"^{server.kind.title()} \d+\.\d+\.\d+ at 127.0.0.1:{server.port}, database 0")
    found.one("ok", r"answers in \d+\.\d\d ms \(median of 100 PINGs")
    found.one("ok", r"differ by \d+ ms")
    found.one("ok", "user default may do all that is needed")
    assert server.call("KEYS", f"{prefix}*") == []
    assert "trunkline-doctor" not in server.call("CLIENT", "LIST").decode()


async def test_who_is_there(server: Server, prefix: str) -> None:
    """Open nodes and stored keys of the prefix are counted; a key that would stay for ever is named."""
    layers = [RedisChannelLayer([server.url], prefix=prefix) for _ in range(3)]
    for layer in layers:
        await layer.group_add("g", await layer.new_channel())
    await layers.pop().close()
    await layers[0].send("jobs", {"type": "x"})
    (await look(server.url, prefix=prefix)).one("ok", f"prefix '{prefix}': 2 nodes, [1-9]")
    (await look(server.url, prefix=f"{prefix}other")).one("ok", "0 nodes, 0 keys")
    (await look(server.url, prefix=f"{prefix[:-1]}*")).one("ok", "0 nodes, 0 keys")
    key = f"{prefix}/0{{z1}}x:stray"
    server.call("SET", key, "1")
    stray = (await look(server.url, prefix=prefix)).one("warning", f"1 keys .* for ever: {re.escape(key)}")
    assert "EXPIRE" in stray.fix
    server.call("UNLINK", key)
    for layer in layers:
        await layer.close()


async def test_several_servers(serve: Callable[..., Server]) -> None:
    """Each is examined under its address; one server under two names is an error."""
    one, two = serve(), serve()
    found = await look("redis://", hosts=[one.url, two.url])
    for server in (one, two):
        found.one("ok", f"^127.0.0.1:{server.port}: Redis")
    assert "error" not in found.levels()
    twice = await look("redis://", hosts=[one.url, f"redis://localhost:{one.port}"])
    twice.one("error", "are one and the same server")
    (await look(one.url, read_hosts=[two.url])).one("warning", "read_hosts is set")


# Servers with settings that lose messages


async def test_eviction(serve: Callable[..., Server]) -> None:
    """allkeys-* is an error, volatile-* with a limit a warning; the fix can be typed as it is."""
    server = serve(maxmemory="100mb", maxmemory_policy="allkeys-lru")
    fix = (await look(server.url)).one("error", "allkeys-lru: when memory is full, the server deletes").fix
    server.call("CONFIG", "SET", "maxmemory-policy", "volatile-ttl")
    (await look(server.url)).one("warning", "volatile-ttl")
    assert server.call(*fix.split()) == b"OK"
    assert "error" not in (await look(server.url)).levels()


async def test_full_memory(serve: Callable[..., Server]) -> None:
    """A server at its maxmemory is an error with the setting that mends it."""
    server = serve(maxmemory="500kb")
    fix = (await look(server.url)).one("error", r"memory is full: .* of maxmemory 0\.5 MB").fix
    assert server.call(*fix.partition(",")[0].split()) == b"OK"


async def test_persistence(serve: Callable[..., Server]) -> None:
    """An append-only file is fine, snapshots alone are a warning; a disk that fails is an error."""
    server = serve(appendonly="yes")
    (await look(server.url)).one("ok", "append-only file")
    snapshots = serve(save="3600 1")
    (await look(snapshots.url)).one("warning", "snapshots only")
    # A snapshot cannot replace a folder, also when it is written by root.
    (snapshots.directory / "dump.rdb").mkdir()
    snapshots.call("SET", "x", "1", "PX", 60000)
    snapshots.call("BGSAVE")
    async with asyncio.timeout(10):
        while "rdb_last_bgsave_status:err" not in snapshots.call("INFO", "persistence").decode():
            await asyncio.sleep(0.02)
    (await look(snapshots.url)).one("error", "it could not save to its disk and refuses messages")
    snapshots.call("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
    (await look(snapshots.url)).one("error", "the server could not save to its disk; by default it then")


async def test_small_buffers_and_short_timeouts(serve: Callable[..., Server]) -> None:
    """Settings that cut off clients are warnings, each with a line that mends it."""
    server = serve(timeout="5", maxclients="4")
    server.call("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1048576 262144 10")
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
    try:
        found = await look(server.url)
    finally:
        for connection in connections:
            connection.close()
    found.one("warning", r"\d of at most 4 clients")
    found.one("warning", "timeout 5: ")
    fix = found.one("warning", "client-output-buffer-limit pubsub 1048576 262144").fix
    *words, value = fix.partition('"')[::2]
    assert server.call(*words[0].split(), value.strip('"')) == b"OK"
    server.call("CONFIG", "SET", "timeout", "0")
    found = await look(server.url)
    assert [finding.what for finding in found.found if "buffer" in finding.what] == []


# Servers of the wrong kind


async def test_a_replica(serve: Callable[..., Server]) -> None:
    """A replica is an error that names its master."""
    master = serve()
    replica = serve(replicaof=f"127.0.0.1 {master.port}")
    finding = (await look(replica.url)).one("error", f"replica of 127.0.0.1:{master.port}")
    assert f"127.0.0.1:{master.port}" in finding.fix


async def test_a_cluster(serve: Callable[..., Server]) -> None:
    """A server in cluster mode, named as a single one, is an error that says what to write."""
    server = serve(cluster_enabled="yes", cluster_port=str(free_port()))
    finding = (await look(server.url)).one("error", "part of a cluster, and is not named as such")
    assert finding.fix.startswith(f"write redis+cluster://127.0.0.1:{server.port}")


# Servers that cannot be reached: the cause, in the user's words


@contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


async def test_nobody_there(tmp_path: Path) -> None:
    """Refused, unknown name, no answer, no socket: each is called by its name."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{unused.getsockname()[1]}"
        (await look(url)).one("error", "nothing listens there")
    (await look("redis://no-such-host.invalid")).one("error", "no machine of the name 'no-such-host.invalid'")
    with silent() as port:
        (await look(f"redis://127.0.0.1:{port}?deadline=0.2")).one("error", "does not answer")
    (await look(f"unix://{tmp_path}/none.sock")).one("error", "there is no such socket")


async def test_somebody_else_there() -> None:
    """A port where another protocol is spoken, and one that ends every connection."""

    def impolite(answer: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(answer)
            writer.close()

        return serve

    for answer, what, fix in (
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "Protocol error", "that it is Redis that listens there"),
        (b"", "it ends the connection at once", "rediss://"),
    ):
        async with await asyncio.start_server(impolite(answer), "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            assert fix in (await look(f"redis://127.0.0.1:{port}?deadline=2")).one("error", what).fix


async def test_passwords(serve: Callable[..., Server]) -> None:
    """No password, a wrong one, one too many, an unknown user: each says so, and none is printed."""
    server, closed = serve(), serve(requirepass="secret")
    at = f"127.0.0.1:{closed.port}"
    assert "redis://:PASSWORD@" in (await look(closed.url)).one("error", "it wants a password").fix
    wrong = await look(f"redis://:wr0ng@{at}")
    wrong.one("error", "knows no user default with this password|the password is wrong")
    assert "wr0ng" not in str(wrong.found)
    (await look(f"redis://ada:x@{at}")).one("error", "knows no user ada")
    needless = await look(f"redis://:x@127.0.0.1:{server.port}")
    needless.one("error", "the server has none|knows no user default")
    (await look(f"redis://:secret@{at}")).one("ok", "user default may do all")
    (await look(f"{server.url}/99")).one("error", "has no database 99")


async def test_tls(serve_tls: Callable[..., Any], server: Server) -> None:
    """A private CA, no CA, no TLS on either side, a missing client certificate, an unchecked one: each by its name."""
    tls = serve_tls()
    ca = f"ssl_ca_certs={tls.authority.path}"
    (await look(f"{tls.url}?{ca}")).one("ok", "encrypted by TLS")
    assert "ssl_ca_certs" in (await look(tls.url)).one("error", "certificate is not trusted").fix
    absent = await look(f"{tls.url}?ssl_ca_certs=/no/such/ca.pem")
    assert "check ssl_ca_certs" in absent.one("error", "TLS files of .* cannot be used").fix
    (await look(f"{tls.url}?ssl_cert_reqs=none")).one("warning", "without checking the certificate")
    named = f"rediss://localhost:{tls.port}?{ca}"
    (await look(named)).one("error", "certificate is for another name")
    assert "rediss://" in (await look(f"redis://127.0.0.1:{tls.port}?deadline=1")).one("error", "TLS").fix
    plain = await look(f"rediss://127.0.0.1:{server.port}?deadline=1")
    assert "redis://" in plain.one("error", "TLS").fix


async def test_client_certificates(serve_tls: Callable[..., Any]) -> None:
    """A server that wants a certificate says so, and takes one of its CA."""
    tls = serve_tls(tls_auth_clients="yes")
    ca = f"ssl_ca_certs={tls.authority.path}"
    assert "ssl_certfile" in (await look(f"{tls.url}?{ca}")).one("error", "a certificate from us").fix
    certificate, key = tls.authority.certificate("client")
    found = await look(f"{tls.url}?{ca}&ssl_certfile={certificate}&ssl_keyfile={key}")
    assert "error" not in found.levels()


# Users with few permissions


@pytest.fixture
def grant(server: Server) -> Iterator[Callable[..., str]]:
    """Makes a user by an ACL rule; gives the URL to log in."""
    made = []

    def make(*rules: str, user: str = "ada") -> str:
        made.append(user)
        assert server.call("ACL", "SETUSER", user, "reset", "on", ">pass", *rules) == b"OK"
        return f"redis://{user}:pass@127.0.0.1:{server.port}"

    yield make
    for user in made:
        server.call("ACL", "DELUSER", user)


async def test_the_documented_line_is_enough(server: Server, grant: Callable[..., str], prefix: str) -> None:
    """A user made by the ACL line of the documentation may do all that a layer does, and the doctor agrees."""
    words = acl_line(prefix, "ada").replace("PASSWORD", "pass").split()
    url = grant(*words[3:])
    found = await look(url, prefix=prefix)
    found.one("ok", "user ada may do all that is needed")
    assert "error" not in found.levels()
    server.call("ACL", "LOG", "RESET")
    await _use_everything(RedisChannelLayer([url], prefix=prefix), RedisChannelLayer([url], prefix=prefix))
    assert server.call("ACL", "LOG") == []


async def _use_everything(one: RedisChannelLayer, two: RedisChannelLayer) -> None:
    channel, other = await one.new_channel(), await two.new_channel()
    await one.group_add("g", channel)
    await one.group_add("g", other)
    await one.group_add("g", "jobs")
    await two.group_send("g", {"n": 1})
    await two.send(channel, {"n": 2})
    assert [await one.receive(channel) for _ in range(2)] == [{"n": 1}, {"n": 2}]
    assert [await two.receive(other), await one.receive("jobs")] == [{"n": 1}, {"n": 1}]
    waiting = asyncio.create_task(two.receive("jobs"))
    await asyncio.sleep(0)
    await one.send("jobs", {"n": 3})
    assert await waiting == {"n": 3}
    waiting = asyncio.create_task(two.receive("jobs"))
    await one.send("fence", {})
    await two.receive("fence")
    waiting.cancel()
    await one.group_discard("g", "jobs")
    await one.flush()
    await one.close()
    await two.close()


def test_the_list_of_permissions_is_complete() -> None:
    """Every command in the transport's code and scripts is one that the doctor tries."""
    scripts = "".join(path.read_text() for path in (SOURCE / "scripts").glob("*.lua"))
    used = {name.lower() for name in re.findall(r"redis\.call\('(\w+)'", scripts)}
    rooms = [
        path
        for path in SOURCE.glob("*.py")
        if path.stem not in ("permissions", "doctor", "cluster_doctor", "diagnosis", "sentinel")
    ]
    code = "".join(path.read_text() for path in rooms)
    called = re.findall(r"""(?:pack\(|PlainOp\([^"]*?|\()b?"([A-Z]{3,})",""", code)
    used |= {name.lower() for name in called}
    used -= {
        "pubsub",
        "client",
        "script",
        "auth",
        "select",
    }  # checked below by their subcommands, or by logging in
    used -= {"oom", "clusterdown", "count"}  # two errors, and a word of XRANGE
    used -= {"cluster"}  # by its subcommands, too
    tried = {**permissions._HARMLESS, **permissions._MAKING, **permissions._LAST}
    tried |= {**permissions._IN_CLUSTER, **permissions._LAST_IN_CLUSTER, **permissions._FOR_REPLICAS}
    assert len(used) > 30
    assert used - set(tried) == set()
    assert {"pubsub|numsub", "client|setname", "script|load", "cluster|slots"} <= set(tried)
    assert f"\n{acl_line('asgi')}\n" in (ROOT / "docs/redis.md").read_text()


async def test_what_is_missing_can_be_typed(server: Server, grant: Callable[..., str], prefix: str) -> None:
    """Missing commands, keys and channels are named; the line under them mends all at once."""
    url = grant("+@connection", "+@hash", "+acl|whoami")
    finding = (await look(url, prefix=prefix)).one("error", r"user ada lacks permissions: .*publish.*xadd")
    assert server.call(*finding.fix.partition("  (")[0].split()) == b"OK"
    found = await look(url, prefix=prefix)
    found.one("ok", "user ada may do all that is needed")
    elsewhere = grant("+@all", "~other*", "&other*")
    finding = (await look(elsewhere, prefix=prefix)).one(
        "error", "the keys of this prefix, the pub/sub channels"
    )
    assert finding.fix.startswith(f"ACL SETUSER ada ~{prefix}/* &{prefix}/* +lpush +rpush +sadd  (")


async def test_a_managed_service(server: Server, grant: Callable[..., str], prefix: str) -> None:
    """Without INFO, CONFIG, ACL and SCAN it says what it cannot tell, and finds no error."""
    rules = (f"~{prefix}/*", f"&{prefix}/*", "+@all", "-info", "-config", "-acl", "-scan")
    found = await look(grant(*rules), prefix=prefix)
    assert "error" not in found.levels()
    found.one("warning", "INFO is forbidden, so version, role, memory and persistence cannot be told")
    found.one("ok", "CONFIG is forbidden")
    found.one("ok", "SCAN is forbidden: cannot tell")
    found.one("warning", "user ada lacks permissions, not needed for messages: the commands info scan")


async def test_a_user_who_may_nothing(grant: Callable[..., str]) -> None:
    """Not even PING: the log-in says so."""
    (await look(grant("-@all"))).one("error", "user ada may not even PING")


# The command


def trunkline(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trunkline.cli", *words]
    return subprocess.run(command, env=environment(env), capture_output=True, text=True, timeout=60)


def test_the_command(server: Server, prefix: str) -> None:
    """`trunkline doctor URL` prints a mark and a line for each finding, what to do below, and exits with 0 or 1."""
    done = trunkline("doctor", f"{server.url}?prefix={prefix}")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^✓ \w+ \d+\.\d+\.\d+ at 127", done.stdout, re.M)
    assert re.search(r"^! persistence is off.*\n    CONFIG SET appendonly yes", done.stdout, re.M)
    bad = trunkline("doctor", "redis://127.0.0.1:1", "--json")
    assert bad.returncode == 1
    (finding,) = json.loads(bad.stdout)
    assert (finding["level"], sorted(finding)) == ("error", ["fix", "level", "what"])
    assert trunkline("doctor", TRUNKLINE_URL="redis://127.0.0.1:1").stdout.startswith("✗ 127.0.0.1:1: ")
    wrong = trunkline("doctor", f"{server.url}?capasity=1")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "did you mean 'capacity'" in wrong.stderr


def test_the_configured_layer(server: Server, prefix: str, tmp_path: Path) -> None:
    """In a Django project all hosts and the prefix of CHANNEL_LAYERS are examined; a foreign backend is named."""
    hosts = [{"host": "127.0.0.1", "port": server.port, "db": 1}, ("127.0.0.1", 1)]
    ours = {"BACKEND": "trunkline.layers.RedisChannelLayer", "CONFIG": {"hosts": hosts, "prefix": prefix}}
    theirs = {"BACKEND": "channels.layers.InMemoryChannelLayer"}
    (tmp_path / "mysettings.py").write_text(
        f"SECRET_KEY = 'k'\nCHANNEL_LAYERS = {{'default': {ours!r}, 'theirs': {theirs!r}}}\n"
    )
    env = {"DJANGO_SETTINGS_MODULE": "mysettings", "PYTHONPATH": str(tmp_path)}
    done = trunkline("doctor", **env)
    assert done.returncode == 1
    assert f"✓ 127.0.0.1:{server.port}: {server.kind.title()}" in done.stdout
    assert f"prefix '{prefix}'" in done.stdout
    assert "✗ 127.0.0.1:1: nothing listens there" in done.stdout.replace(
        "127.0.0.1:1: 127.0.0.1:1:", "127.0.0.1:1:"
    )
    foreign = trunkline("doctor", "--layer", "theirs", **env)
    assert foreign.returncode == 2
    assert "channels.layers.InMemoryChannelLayer is not a layer that can be examined" in foreign.stderr


# What no server here can show


def patient(ahead: float | None = 0.0, **info: str) -> doctor.Patient:
    """A server that says this of itself."""
    return doctor.Patient(Host(), Names("asgi", 0), info=info, ahead=ahead)


@pytest.mark.parametrize(
    ("info", "level", "name"),
    [
        ({"redis_version": "5.0.7"}, "error", "Redis 5.0.7"),
        ({"redis_version": "6.0.16"}, "error", "Redis 6.0.16"),
        ({"redis_version": "6.2.0"}, "ok", "Redis 6.2.0"),
        ({"redis_version": "8.2.1"}, "ok", "Redis 8.2.1"),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.5"}, "ok", "Valkey 7.2.5"),
    ],
)
def test_versions(info: dict[str, str], level: str, name: str) -> None:
    """Redis before 6.2 is an error; every Valkey will do."""
    (finding,) = doctor._identity(patient(**info))
    assert (finding.level, name in finding.what) == (level, True)


@pytest.mark.parametrize(
    ("ahead", "level", "text"),
    [(0.4, "ok", "400 ms"), (7.0, "warning", "ahead of"), (-7, "warning", "behind")],
)
def test_clocks(ahead: float, level: str, text: str) -> None:
    """More than a second apart is a warning, which says that messages do not mind."""
    (finding,) = doctor._clock(patient(ahead=ahead))
    assert (finding.level, text in finding.what) == (level, True)


async def test_a_slow_road(server: Server, prefix: str) -> None:
    """20 ms there and back are a warning; it takes two seconds at most to find out."""
    link = Link()
    link.delay = 0.01
    proxy = TcpProxy(link, "127.0.0.1", server.port)
    try:
        found = await look(f"redis://127.0.0.1:{proxy.port}", prefix=prefix)
    finally:
        proxy.close()
    finding = found.one("warning", r"answers in [2-9]\d\.\d\d ms")
    assert "data centre" in finding.fix


@pytest.mark.parametrize(
    ("host", "level", "text"),
    [
        (
            Host("redis.internal", password="x"),
            "warning",
            "the password and every message travel in clear text",
        ),
        (Host("10.0.0.7"), "warning", "every message travels in clear text"),
        (Host("redis.internal", password="x", ssl=True), "ok", "encrypted by TLS"),
        (Host("127.0.0.1", password="x"), "", ""),
        (Host("::1"), "", ""),
        (Host(path="/run/redis.sock"), "", ""),
    ],
)
def test_clear_text(host: Host, level: str, text: str) -> None:
    """What leaves the machine unencrypted is a warning; what stays on it is not."""
    found = [(finding.level, finding.what) for finding in doctor._security(host)]
    assert found == ([(level, text)] if level else [])
