"""A reference interpreter of Core ML's ML programs, which runs a .mlpackage on any system.

It certifies the program: what a converter wrote, its weights, their compression, the cut into
chunks, the names and shapes at the border. It does not certify Apple's runtime, which fuses
operators, chooses its own order of summation, and on the Neural Engine its own arithmetic.

Semantics are those of coremltools' operator definitions (converters/mil/mil/ops/defs), cited as
"defs" beside the operators. Where a definition leaves the result open, as for an index outside its
tensor, the interpreter refuses instead of choosing.

Two numeric modes. `fp32` takes weights as they are stored and computes in float32 throughout:
casts to float16 change nothing, so what remains is the error of the weights and of the graph.
`declared` computes each operator in float32 and rounds its result to the dtype that the program
declares for it, which shows overflow and the loss of half-precision activations.
"""
