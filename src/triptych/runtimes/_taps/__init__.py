"""Looking inside a component while it runs: PyTorch's modules, and each engine's graph.

`graph` and `trace` describe the two sides as values, `by_scope` and `by_weight` say which value of
one is which of the other, `sketch` measures a tensor without keeping it. One file an engine runs
its graph with taps. Verdicts are in `triptych.parity.locate`.
"""
