"""Measurements of django_jobs beside its peers: ``python -m benchmarks``."""
