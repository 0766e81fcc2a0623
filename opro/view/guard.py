"""Who may ask: the page's own requests. And what the page may ask for: nothing elsewhere."""

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]

# Gradio's own scripts stand in the page; what is loaded or asked for comes from this server alone.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:;"
    " frame-ancestors 'none'; form-action 'self'; base-uri 'self'; object-src 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


@dataclass(frozen=True)
class Guard:
    """ASGI middleware: refuses what another site's page sends, and holds the browser to this server.

    Attributes:
        origins: Of the page itself; a request that names another one is refused with 403.
    """

    app: Callable[[Scope, Receive, Send], Awaitable[None]]
    origins: Sequence[str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = dict(scope.get("headers", ()))
        origin = headers.get(b"origin", b"").decode("latin-1")
        other_site = headers.get(b"sec-fetch-site", b"none") in (b"cross-site", b"same-site")
        if (origin and origin not in self.origins) or (other_site and scope.get("method") != "GET"):
            await _refuse(scope, send)
            return

        async def guarded(message: Scope) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        await self.app(scope, receive, guarded)


async def _refuse(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    head = {
        "type": "http.response.start",
        "status": 403,
        "headers": [(b"content-type", b"text/plain")],
    }
    await send(head)
    await send({"type": "http.response.body", "body": b"this page answers to itself alone"})
