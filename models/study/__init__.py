"""A study of one or two real models: which positions to keep, how many bits, on which task."""
