"""Trunkline in a Django project: put ``"trunkline.django"`` into ``INSTALLED_APPS``.

Rules of this room:

- It is the only one that imports Django or Django Channels, and nothing of it is needed to name a layer as ``BACKEND``.
- With Django Channels installed there is one set of layers, in Channels' own manager; ours is used without it.
- Importing this package imports nothing; Django's settings are read when a layer is asked for.
"""
