"""The search, and what one does with its outcome."""

__version__ = "0.1.0"
