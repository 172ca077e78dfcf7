"""A project that shows the package at work: ``manage.py demo``."""
