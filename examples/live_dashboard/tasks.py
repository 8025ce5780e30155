"""The Celery side. It is Celery as always; a task tells the dashboard how far it is."""

import os
import time
from pathlib import Path

from celery import Celery

import trunkline

trunkline.configure("embedded:")  # the web processes started in this folder hear what tasks say

# A folder is this example's broker, so that it needs no server; yours has Redis or RabbitMQ here.
folder = Path(os.environ.get("BROKER_DIR", "/tmp/trunkline-live-dashboard"))
for name in ("messages", "control"):
    (folder / name).mkdir(parents=True, exist_ok=True)
app = Celery("tasks", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": folder / "messages",
        "data_folder_out": folder / "messages",
        "control_folder": folder / "control",
    },
    worker_hijack_root_logger=False,
)


@app.task(ignore_result=True)
def bake(order: int, loaves: int) -> None:
    """Takes long, and says so: `layer.sync` needs no event loop, and works in the children of a forking worker."""
    layer = trunkline.get_channel_layer()
    for done in range(1, loaves + 1):
        time.sleep(0.1)
        event = {"type": "order.progress", "order": order, "done": done, "of": loaves, "worker": os.getpid()}
        layer.sync.group_send("dashboard", event)
