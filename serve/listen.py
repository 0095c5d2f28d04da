"""Binding the port, before anything slow."""

from __future__ import annotations

import errno
import socket

from mmf_deploy.errors import ConfigError


def listen(host: str, port: int) -> socket.socket:
    """Take a port; from now on clients that connect wait instead of being refused.

    Args:
        port: 0 picks a free one.
    Raises:
        ConfigError: the port is in use or not allowed, or there is no such host here.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as e:
        reason = getattr(e, "strerror", None) or "not a host name"
        raise ConfigError(f"--host {host}: no such address here ({reason})") from e
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # with SO_REUSEADDR it is listening, not binding, that excludes others
        listener.listen(2048)
    except OSError as e:
        listener.close()
        raise ConfigError(_explain(e, host, port)) from e
    return listener


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        other = port + 1 if port < 65535 else 0
        return f"port {port} on {host} is in use; choose another: mmf-serve --port {other}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"port {port} on {host} is not allowed to this user; "
            "choose one above 1023: mmf-serve --port 8000"
        )
    return f"cannot listen on {host}, port {port}: {error.strerror}"
