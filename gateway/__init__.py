"""A LiveKit room for anything that speaks HTTP: text in by POST, text out by Server-Sent Events."""

__version__ = "0.1.0"
