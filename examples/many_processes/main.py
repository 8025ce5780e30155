"""Processes of one machine, no server and no web: a group, a work queue, and a process that is killed. In this folder:

python main.py
"""

import asyncio
import multiprocessing
import os
import signal
import tempfile

from trunkline.layers import EmbeddedChannelLayer


def process(folder: str, name: str) -> None:
    """One of the processes: it answers calls to the whole team, and takes parts of the work."""
    asyncio.run(answer_and_work(folder, name))


async def answer_and_work(folder: str, name: str) -> None:
    async with EmbeddedChannelLayer(folder) as layer:
        me = await layer.new_channel()
        await layer.group_add("team", me)
        await layer.send("boss", {"type": "ready", "name": name, "pid": os.getpid()})

        async def answer() -> None:
            while True:
                call = await layer.receive(me)
                await layer.send(call["reply_to"], {"type": "here", "name": name})

        async def work() -> None:
            while True:
                part = await layer.receive("parts")
                await layer.send("boss", {"type": "done", "part": part["part"], "square": part["part"] ** 2})

        await asyncio.gather(answer(), work())


async def who_is_there(layer: EmbeddedChannelLayer, expected: int) -> list[str]:
    """Ask the team; one message, however many processes."""
    me = await layer.new_channel()
    await layer.group_send("team", {"type": "who", "reply_to": me})
    return sorted([(await layer.receive(me))["name"] for _ in range(expected)])


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="team-") as folder:
        names = ["Ada", "Bob", "Eve"]
        spawn = multiprocessing.get_context("spawn")
        team = {name: spawn.Process(target=process, args=(folder, name), daemon=True) for name in names}
        for each in team.values():
            each.start()
        async with EmbeddedChannelLayer(folder) as layer:
            for _ in team:
                await layer.receive("boss")
            print("here:", *await who_is_there(layer, 3))

            for part in range(10):
                await layer.send("parts", {"type": "part", "part": part})
            done = [await layer.receive("boss") for _ in range(10)]
            print("squares:", *sorted(each["square"] for each in done))

            os.kill(team["Bob"].pid, signal.SIGKILL)
            team["Bob"].join()
            print("here after kill -9:", *await who_is_there(layer, 2))
        for each in team.values():
            each.terminate()
            each.join()


if __name__ == "__main__":
    asyncio.run(main())
