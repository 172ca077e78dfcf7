"""The one boundary through which every JSON value passes, on every database alike.

What :func:`dumps` accepts is stored and read back unchanged by PostgreSQL, MySQL, MariaDB and
SQLite. Error texts and log lines are never refused: :func:`clean_text` repairs them.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Collection
from enum import Enum
from functools import lru_cache
from typing import Any, NoReturn

from pydantic_core import from_json, to_json

from django_jobs.errors import ErrorDict, NotSerializable

#: Containers inside one another.
MAX_DEPTH = 64
MAX_INT = 2**63 - 1
MIN_INT = -(2**63)
#: Bytes of an input or output unless a setting says otherwise.
DEFAULT_LIMIT = 1_048_576
#: Bytes of an error's message, and of its traceback.
TEXT_LIMIT = 65_536
HIDDEN = "********"

_TRUNCATED = "… truncated"
_BROKEN = re.compile("[\x00\ud800-\udfff]")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")


# --- values -------------------------------------------------------------------------------------


def dumps(value: Any, *, what: str = "input", limit: int = DEFAULT_LIMIT) -> str:
    """The compact JSON text of ``value``, keys in the given order.

    Raises NotSerializable with the path (which begins with ``what``), the reason and the remedy;
    ``limit`` is in bytes of UTF-8.
    """
    return _encode(value, what, limit)[1].decode()


def plain(value: Any, *, what: str = "input", limit: int = DEFAULT_LIMIT) -> Any:
    """``value`` as JSON gives it back (a tuple becomes a list); refuses what :func:`dumps` does.

    A value that is plain already is returned itself, not copied.
    """
    return _encode(value, what, limit)[0]


def dumps_plain(value: Any, *, what: str = "input", limit: int = DEFAULT_LIMIT) -> str:
    """Like :func:`dumps`, for what :func:`plain` or a schema returned: only the size is checked."""
    text = to_json(value)
    if len(text) > limit:
        _too_large(what, limit, f"{len(text):,} bytes")
    return text.decode()


def _encode(value: Any, what: str, limit: int) -> tuple[Any, bytes]:
    """The plain value and its JSON text as bytes."""
    if _is_plain(value, limit, MAX_DEPTH) < 0:
        value = _Plainer(what, limit).convert(value, what, ())
    try:
        text = to_json(value)
    except ValueError:
        # Only a lone surrogate is left to fail here; the walk below names its place.
        _Plainer(what, limit).convert(value, what, ())
        raise
    if len(text) > limit:
        _too_large(what, limit, f"{len(text):,} bytes")
    if b"\\u0000" in text:
        # Either a NUL or six harmless characters: the walk below tells them apart.
        _Plainer(what, limit).convert(value, what, ())
    return value, text


_SIMPLE = frozenset({str, bool, type(None)})


def _is_plain(value: Any, room: int, depth: int) -> int:
    """The room that is left, or -1 where the slow walk must convert ``value`` or name its fault.

    ``room`` counts values. It ends the walk over a small structure that refers to its parts so
    often that its text would be endless.
    """
    kind = type(value)
    if kind in _SIMPLE:
        return room
    if kind is int:
        return room if MIN_INT <= value <= MAX_INT else -1
    if kind is float:
        return room if value - value == 0.0 else -1  # false for NaN and both infinities
    if kind is dict:
        for key in value:
            if type(key) is not str:
                return -1
        members = value.values()
    elif kind is list:
        members = value
    else:
        return -1
    if depth == 0:
        return -1
    room -= len(value)
    for member in members:
        kind = type(member)
        if kind in _SIMPLE:
            continue
        if kind is int:
            if not MIN_INT <= member <= MAX_INT:
                return -1
        else:
            room = _is_plain(member, room, depth - 1)
            if room < 0:
                return -1
    return room


class _Plainer:
    """The slow walk: copies a value into plain JSON types, or says what is wrong and where."""

    def __init__(self, what: str, limit: int) -> None:
        self.what = what
        self.limit = limit
        self.room = limit

    def convert(self, value: Any, path: str, parents: tuple[int, ...]) -> Any:
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, int):
            number = int.__add__(value, 0)
            if not MIN_INT <= number <= MAX_INT:
                _refuse(path, "the integer needs more than 64 bits", "Pass it as a string.")
            return number
        if isinstance(value, float):
            if value - value != 0.0:
                _refuse(path, f"{float.__repr__(value)} is not a JSON number", "Pass None instead.")
            return float.__add__(value, 0.0) if type(value) is not float else value
        if isinstance(value, dict | list | tuple):
            return self._container(value, path, parents)
        return _refuse(path, f"{_type_name(value)} is not a JSON type", _remedy(value))

    def _text(self, value: str, path: str, of: str = "the text") -> str:
        text = str.__str__(value)
        if fault := _BROKEN.search(text):
            kind = "a NUL character" if fault[0] == "\0" else "a lone surrogate"
            _refuse(
                path,
                f"{of} holds {kind} at position {fault.start()}, which databases cannot store",
                "Remove it, or pass bytes as base64 text.",
            )
        return text

    def _container(self, value: Any, path: str, parents: tuple[int, ...]) -> Any:
        if id(value) in parents:
            _refuse(path, "the value contains itself", "Pass a copy without the cycle.")
        if len(parents) >= MAX_DEPTH:
            _refuse(
                _shortened(path),
                f"the value is nested deeper than {MAX_DEPTH} levels",
                "Flatten it, or store it elsewhere and pass its key.",
            )
        self.room -= len(value)
        if self.room < 0:
            _too_large(self.what, self.limit, "far more")
        parents = (*parents, id(value))
        if not isinstance(value, dict):
            return [
                self.convert(member, f"{path}[{index}]", parents)
                for index, member in enumerate(value)
            ]
        made: dict[str, Any] = {}
        for key, member in value.items():
            if not isinstance(key, str):
                _refuse(
                    path,
                    f"the key {_shown(key)} is {_type_name(key)}, and JSON keys are text",
                    "Use text keys, or annotate the parameter, for example dict[int, str].",
                )
            name = self._text(key, path, of="a key")
            if name in made:
                _refuse(path, f"two keys become {_shown(name)}", "Use different keys.")
            made[name] = self.convert(member, join(path, name), parents)
        return made


def join(path: str, key: str | int) -> str:
    """``path`` and one more part: ``input.items``, ``input[3]``, ``input["first name"]``."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if _IDENTIFIER.match(key) else f"{path}[{_shown(key)}]"


def _refuse(path: str, reason: str, remedy: str) -> NoReturn:
    raise NotSerializable(f"{path}: {reason}. {remedy}")


def _too_large(what: str, limit: int, size: str) -> NoReturn:
    _refuse(
        what,
        f"the JSON text may have {limit:,} bytes and has {size}",
        "Store the data elsewhere and pass its key, or raise the limit in DJANGO_JOBS.",
    )


def _type_name(value: Any) -> str:
    kind = type(value)
    name = kind.__qualname__
    return name if kind.__module__ == "builtins" else f"{kind.__module__}.{name}"


def _shown(key: Any) -> str:
    text = json.dumps(str.__str__(key)) if isinstance(key, str) else clean_text(_safe_repr(key))
    return text if len(text) <= 80 else text[:77] + "…"


def _shortened(path: str) -> str:
    return path if len(path) <= 200 else f"{path[:120]}…{path[-60:]}"


def _safe_repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:
        return f"<unprintable {type(value).__qualname__}>"


def _remedy(value: Any) -> str:
    if isinstance(value, Enum):
        return "Pass its value, or annotate the parameter or return value with the enum."
    if hasattr(value, "_meta") and hasattr(value, "pk"):
        return "Pass the primary key and load the object in the handler."
    if isinstance(value, bytes | bytearray | memoryview):
        return "Pass base64 text, or annotate the parameter or return value with bytes."
    if callable(value):
        return "Pass data; code is named by its registered task."
    return "Annotate the parameter or return value with its type, or convert it to text."


def loads(text: str | bytes | None) -> Any:
    """The value of a JSON text, ``None`` for ``None``; ValueError for what is no JSON, or NaN."""
    if text is None:
        return None
    return from_json(text, allow_inf_nan=False)


_canonical = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"), check_circular=False
)


def canonical(value: Any, *, limit: int = DEFAULT_LIMIT) -> str:
    """Compact JSON with sorted keys, for hashes; refuses what :func:`dumps` does."""
    return _canonical.encode(plain(value, what="value", limit=limit))


# --- text ---------------------------------------------------------------------------------------


def clean_text(text: str, limit: int = TEXT_LIMIT) -> str:
    """``text`` as every database can store it: NUL and lone surrogates become U+FFFD.

    Longer than ``limit`` bytes of UTF-8, it is cut and ends in "… truncated".
    """
    text = str.__str__(text)
    if len(text) > limit:
        text = text[: limit + 1]
    if not text.isprintable():
        text = _BROKEN.sub("\ufffd", text)
    if len(text) * 4 > limit:
        raw = text.encode()
        if len(raw) > limit:
            room = max(limit - len(_TRUNCATED.encode()), 0)
            return raw[:room].decode(errors="ignore") + _TRUNCATED
    return text


def _cut_middle(text: str, limit: int) -> str:
    """Like :func:`clean_text`, but keeps both ends: a traceback says most at its end."""
    raw = _BROKEN.sub("\ufffd", text).encode()
    if len(raw) <= limit:
        return raw.decode()
    mark = f"\n{_TRUNCATED} …\n".encode()
    room = max(limit - len(mark), 0)
    head, tail = raw[: room // 3], raw[len(raw) - (room - room // 3) :]
    return (head + mark + tail).decode(errors="ignore")


def describe_error(
    error: BaseException, *, code: str | None = None, names: Collection[str] = ()
) -> ErrorDict:
    """The stored form of an exception: ``type, message, traceback, code``. Never raises.

    Secrets are hidden (``names`` as in :func:`redact`), each text is at most 64 KiB, and no
    local variables are recorded.
    """
    kind = type(error)
    try:
        message = str.__str__(str(error))
    except BaseException:  # whatever a handler's exception does, its failure must be recorded
        message = f"<unprintable {kind.__qualname__}>"
    return {
        "type": clean_text(f"{kind.__module__}.{kind.__qualname__}", 1000),
        "message": redact_text(clean_text(message), names),
        "traceback": redact_text(_cut_middle(_traceback(error), TEXT_LIMIT), names),
        "code": code,
    }


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # a chain too long, or attributes that raise
        pass
    try:
        return "".join(traceback.format_exception(error, chain=False))
    except BaseException:
        return f"<traceback of {type(error).__qualname__} unprintable>"


# --- secrets ------------------------------------------------------------------------------------

#: A key that contains one of these (letters and digits compared only) holds a secret.
SECRET_WORDS = (
    "password", "passwd", "passphrase", "secret", "token", "apikey", "accesskey", "privatekey",
    "signingkey", "authorization", "credential", "cookie", "creditcard", "cardnumber", "iban",
    "whsec",
)  # fmt: skip

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W_]+")
_FLEXIBLE = "|".join(
    ("api[_-]?key", "access[_-]?key", "private[_-]?key", "signing[_-]?key", "credit[_-]?card",
     "card[_-]?number", "password", "passwd", "passphrase", "secret", "token", "authorization",
     "credential", "cookie", "iban")
)  # fmt: skip
_VALUE = r"""(\\?["'])(?:(?!\2)[^\\\n]|\\.)*?\2|[^\s"',;&)\]}]+"""
_TOKENS = re.compile(r"whsec_[A-Za-z0-9+/=_-]+|\b(Bearer)\s{1,3}[A-Za-z0-9._~+/=-]{6,}", re.I)
#: Without one of these in it, a text needs no search for ``key=value``.
_HINTS = ("pass", "secret", "token", "key", "authorization", "credential", "cookie", "card", "iban")
_URL_PASSWORD = re.compile(r"(://[^\s/:@]{0,100}:)[^\s/@]{1,200}@")
_HEADERS = re.compile(r"(?im)^(\s{0,8}(?:authorization|cookie|set-cookie):\s?)[^\n]+")


@lru_cache(maxsize=4096)
def _is_secret(key: str, names: tuple[str, ...]) -> bool:
    squeezed = "".join(re.findall(r"[^\W_]+", key)).lower()
    if any(word in squeezed for word in SECRET_WORDS):
        return True
    words = f"_{_words(key)}_"
    return any(f"_{_words(name)}_" in words or name.lower() == key.lower() for name in names)


def _words(key: str) -> str:
    return "_".join(_WORD.findall(key)).lower()


def redact(value: Any, names: Collection[str] = ()) -> Any:
    """A copy of a JSON ``value`` with secrets replaced by ``********``.

    A secret is the value of a key that contains a usual word (password, token, api_key …) or has
    one of ``names`` as a whole word (``ssn`` hides ``customer_ssn`` and ``customerSsn``), and any
    signing secret or bearer token within a text.
    """
    return _redact(value, tuple(names), MAX_DEPTH + 1)


def _redact(value: Any, names: tuple[str, ...], depth: int) -> Any:
    if isinstance(value, str):
        return _hide_tokens(value)
    if depth == 0:
        return HIDDEN
    if isinstance(value, dict):
        return {
            key: HIDDEN
            if isinstance(key, str) and _is_secret(key, names)
            else _redact(member, names, depth - 1)
            for key, member in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redact(member, names, depth - 1) for member in value]
    return value


@lru_cache(maxsize=64)
def _pairs(names: tuple[str, ...]) -> re.Pattern[str]:
    declared = "".join(rf"|(?<![^\W_]){re.escape(name)}(?![^\W_])" for name in names if name)
    key = rf"""(?:{_FLEXIBLE}{declared})[\w.-]{{0,40}}\\?["']?"""
    return re.compile(rf"({key}\s{{0,3}}[=:]\s{{0,3}})(?:{_VALUE})", re.I)


def _hide_tokens(text: str) -> str:
    lowered = text.lower()
    if "whsec_" in lowered or "bearer" in lowered:
        text = _TOKENS.sub(lambda match: f"{match[1]} {HIDDEN}" if match[1] else HIDDEN, text)
    if "://" in text and "@" in text:
        text = _URL_PASSWORD.sub(rf"\1{HIDDEN}@", text)
    return text


def redact_text(text: str, names: Collection[str] = ()) -> str:
    """``text`` with tokens, and the values in ``password=…`` or ``"password": "…"``, hidden."""
    text = _hide_tokens(text)
    lowered = text.lower()
    if not names and not any(hint in lowered for hint in _HINTS):
        return text

    def hidden(match: re.Match[str]) -> str:
        quote = match[2] or ""
        return f"{match[1]}{quote}{HIDDEN}{quote}"

    return _pairs(tuple(names)).sub(hidden, _HEADERS.sub(rf"\1{HIDDEN}", text))
