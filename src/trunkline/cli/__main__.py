"""``python -m trunkline.cli``: the same as ``trunkline``."""

from . import main

main()
