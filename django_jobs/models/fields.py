"""Column types and indexes that mean the same on every database."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.backends.ddl_references import Statement
from django.db.models import Q


class NameField(models.CharField):
    """A name compared byte for byte, on MySQL and MariaDB as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("max_length", 200)
        super().__init__(*args, **kwargs)

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        parameters = super().db_parameters(connection)
        if connection.vendor == "mysql":
            parameters["collation"] = "utf8mb4_bin"
        return parameters


class JSONField(models.JSONField):
    """JSON of any depth that the boundary lets through, on MariaDB as well.

    MariaDB's own type and Django's check call JSON invalid that is nested deeper than 32.
    """

    def db_type(self, connection: BaseDatabaseWrapper) -> str | None:
        return "longtext" if _is_mariadb(connection) else super().db_type(connection)

    def db_check(self, connection: BaseDatabaseWrapper) -> Any:
        return None if _is_mariadb(connection) else super().db_check(connection)

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        parameters = super().db_parameters(connection)
        if _is_mariadb(connection):
            parameters["collation"] = "utf8mb4_bin"
        return parameters


def _is_mariadb(connection: BaseDatabaseWrapper) -> bool:
    return connection.vendor == "mysql" and bool(getattr(connection, "mysql_is_mariadb", False))


class PartialIndex(models.Index):
    """An index over the rows that match ``where``; over all rows where partial ones do not exist.

    ``Index(condition=…)`` would do the same, but warns on every ``check`` on MySQL (models.W037).
    """

    def __init__(self, *, where: Q, mysql_fields: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.where = where
        self.mysql_fields = mysql_fields

    def create_sql(
        self,
        model: type[models.Model],
        schema_editor: BaseDatabaseSchemaEditor,
        using: str = "",
        **kwargs: Any,
    ) -> Statement:
        if schema_editor.connection.features.supports_partial_indexes:
            twin = models.Index(fields=self.fields, name=self.name, condition=self.where)
        else:
            twin = models.Index(fields=self.mysql_fields or self.fields, name=self.name)
        return twin.create_sql(model, schema_editor, using=using, **kwargs)

    def deconstruct(self) -> Any:
        path, args, kwargs = super().deconstruct()
        kwargs["where"] = self.where
        if self.mysql_fields:
            kwargs["mysql_fields"] = self.mysql_fields
        return path, args, kwargs
