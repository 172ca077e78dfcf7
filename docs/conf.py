"""Sphinx settings of the documentation. Build: ``sphinx-build -W docs docs/_build``."""

import tomllib
from pathlib import Path

with (Path(__file__).parent.parent / "pyproject.toml").open("rb") as _file:
    _project = tomllib.load(_file)["project"]

project = "django_jobs"
copyright = "the django-jobs-workflows contributors"
author = "the django-jobs-workflows contributors"
release = version = _project["version"]

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = True
html_theme = "furo"
html_title = "django_jobs"
