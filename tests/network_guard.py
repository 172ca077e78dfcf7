"""Tests talk to this machine only: any other socket raises.

An audit hook and not a patched ``socket`` module, so that no library can have kept the original;
the test settings install it, so that worker processes started by tests are guarded as well.
"""

from __future__ import annotations

import ipaddress
import sys
from typing import Any

_installed = False


class OutsideConnection(RuntimeError):
    """A test tried to reach another machine."""


def is_inside(host: object) -> bool:
    """Whether ``host`` (a name or an address) is this machine."""
    if host is None or host in ("", b""):
        return True
    name = host.decode("ascii", "replace") if isinstance(host, bytes | bytearray) else str(host)
    if name.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _is_address(host: object) -> bool:
    try:
        ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return False
    return True


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not event.startswith("socket."):
        return
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        if isinstance(address, tuple) and address and not is_inside(address[0]):
            raise OutsideConnection(f"Tests may connect to this machine only, not to {address!r}.")
    elif event == "socket.getaddrinfo":
        host = arguments[0]
        # A bare address is not looked up anywhere, so that guards against it stay testable.
        if not is_inside(host) and not _is_address(host):
            raise OutsideConnection(f"Tests may look up no name of another machine: {host!r}.")


def install() -> None:
    """Switch the guard on for the rest of this process."""
    global _installed
    if not _installed:
        _installed = True
        sys.addaudithook(_hook)
