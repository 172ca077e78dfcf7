"""One script for each system that is measured; see :mod:`benchmarks.sides.common`."""
