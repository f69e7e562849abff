"""Public test helpers: a small SDXL checkpoint made on the spot, for tests without downloads.

Importing this package imports no framework; `tiny_checkpoint` needs the `export` extra when called.
"""

from triptych.testing.tiny import tiny_checkpoint

__all__ = ["tiny_checkpoint"]
