"""Proof that the tests can fail: named damages to the engine, each of which must be caught."""
