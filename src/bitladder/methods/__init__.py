"""Quantization methods: one file each, which answers all that depends on how weights are quantized.

What is asked of a method stands in `method.Method`; the table of methods beside the ladder, in `rungs`. No torch is
imported but inside functions, so that a report can ask, too.
"""
