"""A model in, a rung's checkpoint out: quantized once, kept in the cache, placed where it is asked for."""
