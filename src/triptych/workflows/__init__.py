"""What the command line and users call: export, sample, check, inspect, doctor, demo.

Each module holds one job on files that returns a value. None prints, exits or asks.
"""
