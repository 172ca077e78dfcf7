from django.apps import AppConfig


class BenchmarksConfig(AppConfig):
    name = "benchmarks.project"
    label = "benchmarks"
