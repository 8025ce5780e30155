"""The layers by name, as ``BACKEND`` in ``CHANNEL_LAYERS`` or made by hand."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

from .layer import ChannelLayer
from .opening import layer_settings, transport_class
from .settings import Options

__all__ = ["EmbeddedChannelLayer", "InMemoryChannelLayer"]

OnGap = Callable[[str | None, str], object]


class InMemoryChannelLayer(ChannelLayer):
    """One process, for tests and development; same semantics as the others.

    Args:
        hub: Layers with the same hub hear each other, so that a test can play several processes. None: this layer stands
            alone.
        prefix: Layers of one hub with different prefixes do not meet.
        on_gap: Called with the group (None: any) and the reason when messages were lost.
        **options: See ``trunkline.settings.Settings``.
    """

    def __init__(
        self,
        *,
        hub: str | None = None,
        prefix: str = "asgi",
        on_gap: OnGap | None = None,
        **options: Unpack[Options],
    ) -> None:
        settings = layer_settings(InMemoryChannelLayer, options)
        transport = partial(transport_class("memory"), hub or uuid.uuid4().hex, prefix=prefix)
        super().__init__(transport, settings, on_gap)


class EmbeddedChannelLayer(ChannelLayer):
    """Every process of one machine, with no server.

    Args:
        path: The directory the processes share. None: one per user and project folder.
        prefix: Layers of one directory with different prefixes do not meet.
        max_size: Bytes the file may take.
        on_gap: Called with the group (None: any) and the reason when messages were lost.
        **options: See ``trunkline.settings.Settings``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        prefix: str = "asgi",
        max_size: int | None = None,
        on_gap: OnGap | None = None,
        **options: Unpack[Options],
    ) -> None:
        settings = layer_settings(EmbeddedChannelLayer, options)
        extra: dict[str, Any] = {} if max_size is None else {"max_size": max_size}
        transport = partial(transport_class("embedded"), path, prefix=prefix, **extra)
        super().__init__(transport, settings, on_gap)
