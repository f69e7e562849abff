"""Public test helpers: small checkpoints, random and trained, and the contract of every backend.

Importing this package imports no framework; calling what is in it needs the `export` extra, and
the contracts need the engine that they check.
"""

from triptych.testing._single_file import write_single_file
from triptych.testing.contract import check_exporter, check_runtime
from triptych.testing.demo_model import demo_checkpoint
from triptych.testing.full_size import full_size_checkpoint
from triptych.testing.tiny import tiny_checkpoint

__all__ = [
    "check_exporter",
    "check_runtime",
    "demo_checkpoint",
    "full_size_checkpoint",
    "tiny_checkpoint",
    "write_single_file",
]
