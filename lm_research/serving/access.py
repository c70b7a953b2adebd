"""Access control: the host names that a server without a token accepts, and the security headers of its responses.

Any web page can let its own name point to this machine (DNS rebinding), and could then read a local server's responses. It
cannot choose the Host and Origin headers that the browser sends.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lm_research.serving.responses import error_body

LOCAL = ("localhost", "127.0.0.1", "::1")
HEADERS = {  # of all responses, including those to invalid requests
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "SAMEORIGIN",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'self'",
}


class Access:
    """ASGI middleware that checks host names and adds security headers to responses."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        """Wrap `app`; `hosts` are accepted names in addition to this machine's own; None or "*" accepts all names."""
        self.app = app
        # The local names are not trusted as origins, because other servers of this machine have them at other ports.
        self.extra = {name_of(host) for host in hosts or ()} - {"", *LOCAL}
        self.hosts = None if hosts is None or "*" in hosts else {*LOCAL, *self.extra}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request as the ASGI specification describes."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                defaults = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in defaults if pair[0] not in present)]
            await send(message)

        reason = self.refusal(Headers(scope=scope))
        app = self.app if reason is None else JSONResponse({"error": error_body(403, reason)}, 403)
        return await app(scope, receive, send_with_headers)

    def refusal(self, headers: Headers) -> str | None:
        """Return why a request is refused, or None if it is accepted."""
        if self.hosts is None:
            return None
        for host in headers.getlist("host"):  # HTTP/1.0, which browsers do not use, may have none
            if name_of(host) not in self.hosts:
                return (
                    f"This server does not accept the host name {host[:80]!r}. Use its address, or start it with "
                    "--allowed_hosts=NAME."
                )
        for origin in headers.getlist("origin"):
            netloc = origin.partition("://")[2].lower()
            if not netloc or (netloc != headers.get("host", "").lower() and name_of(netloc) not in self.extra):
                return (
                    f"Pages of {origin[:80]!r} may not send requests to this server. If that is a proxy's name for it, start it with "
                    "--allowed_hosts=NAME."
                )
        return None


def name_of(netloc: str) -> str:
    """Return the name or address in HOST, HOST:PORT, ADDRESS or [ADDRESS]:PORT; "" if it has another form."""
    if netloc.count(":") > 1 and not netloc.startswith("["):
        return netloc.lower()
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::\d*)?", netloc)
    return (match[1] or match[2]).lower().rstrip(".") if match else ""


def page_policy(page: str) -> str:
    """Return the content security policy of a page: its inline scripts and styles, by digest, and requests to this server."""
    scripts, styles = _digests(page, "script"), _digests(page, "style")
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'self'"
    )


def _digests(page: str, tag: str) -> str:
    texts = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)
