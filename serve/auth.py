"""Middleware that lets nobody in without an API key."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from .api_keys import KeyRing
from .error_replies import error_reply
from .key_file import Key

OPEN_PATHS = ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")

HOW = "send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"


class Auth:
    """Answers 401 to requests without a valid key; puts the Key of others in scope["state"]["key"].

    Nothing of a refused request's body is read, and no key is ever logged or sent back.

    Args:
        ring_provider: gives the keys of this moment; None lets everybody in.
        open_paths: paths that need no key; exactly these.
    """

    def __init__(
        self,
        app: ASGIApp,
        ring_provider: Callable[[], KeyRing | None],
        open_paths: Iterable[str] = OPEN_PATHS,
    ) -> None:
        self.app = app
        self.ring_provider = ring_provider
        self.open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its key, or refuse it."""
        ring = None if scope["type"] == "lifespan" else self.ring_provider()
        if ring is None or own_path(scope) in self.open_paths:
            await self.app(scope, receive, send)
            return
        key = admitted(ring, scope["headers"])
        if isinstance(key, Key):
            scope.setdefault("state", {})["key"] = key
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            # before it is accepted a closed socket is answered with 403
            await send({"type": "websocket.close", "code": 1008, "reason": "unauthorized"})
        else:
            headers = {"WWW-Authenticate": "Bearer"}
            path = own_path(scope)
            reply = error_reply(path, 401, "unauthorized", key, field=None, headers=headers)
            await reply(scope, receive, send)


def admitted(ring: KeyRing, headers: Iterable[tuple[bytes, bytes]]) -> Key | str:
    """The entry of the key that came with a request, or why there is none."""
    given = set(_given(headers))
    if not given:
        return f"this service needs an API key: {HOW}"
    if len(given) > 1:
        return "two different API keys came with this request; send one"
    key = ring.match(given.pop())
    if key is None:
        return f"this API key is not valid here; {HOW} with one that is"
    if key.expired():
        return f"this API key expired after {key.expires}; ask for a new one"
    return key


def _given(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[str]:
    """Every key in the headers. Any bytes are text in Latin-1, so nothing here can fail."""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, rest = value.decode("latin-1").strip().partition(" ")
            # another scheme may belong to a proxy in front
            if scheme.lower() == "bearer" and rest.strip():
                yield rest.strip()
        elif name == b"x-api-key" and value.strip():
            yield value.decode("latin-1").strip()


def own_path(scope: Scope) -> str:
    """The path as the routes see it, without the prefix under which the app is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path
