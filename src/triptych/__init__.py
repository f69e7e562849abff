"""One SDXL checkpoint, three runtimes, one trajectory.

Importing triptych imports no framework. The functions that people call stand in
`triptych.workflows`; test helpers in `triptych.testing`.
"""

__version__ = "0.1.0"
