"""The channel layer for the real-time web."""
__version__ = "0.1.0"
