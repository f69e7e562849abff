"""What every engine and every exporter must do, as checks that whoever writes one can run.

The checks ask nothing of the model: they take any SDXL checkpoint or bundle, though
`tiny_checkpoint` makes them fast. A clause that is broken raises CheckFailedError and says which.
"""

from triptych.testing._exporter_contract import check_exporter
from triptych.testing._runtime_contract import check_runtime

__all__ = ["check_exporter", "check_runtime"]
