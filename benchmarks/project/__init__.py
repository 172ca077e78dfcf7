"""The small Django project that is measured."""
