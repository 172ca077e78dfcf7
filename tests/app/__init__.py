"""A small app whose jobs the tests run."""
