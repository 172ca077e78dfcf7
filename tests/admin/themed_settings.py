"""The settings of the tests with the theme of django-unfold, which brings templates of the admin."""

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS as PLAIN

INSTALLED_APPS = ["unfold", *PLAIN]
