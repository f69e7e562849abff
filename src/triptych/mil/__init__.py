"""What a Core ML ML program says: its ports, operations, constants and mapped weights, as values.

Reading only. Programs are made in `exporters` and run in `runtimes`.
"""
