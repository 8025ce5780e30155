"""The demo: a chat served by several processes on one port, and a worker, tied together by nothing but the layer.

- ``serve``       starts the processes, starts them again when they die, ends them
- ``child``       one of these processes
- ``app``         what a server process serves: the page, and the chat behind it
- ``thumbnails``  what the worker process does
- ``announce``    a script that reaches every window from outside
- ``page/``       what the browser gets: no build step, nothing from elsewhere

It shows the public API at work, so it uses nothing else.
"""
