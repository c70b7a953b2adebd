"""Who may ask: the names that a server without a token answers to, and what browsers are told of its answers.

A page that anyone wrote can let its own name point to this machine (DNS rebinding), and would then read a local server's answers as
its own. It can't choose what the browser sends as Host and Origin.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lm_research.serving.responses import problem

LOCAL = ("localhost", "127.0.0.1", "::1")
HEADERS = {  # of all answers, those to what is no request too
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "SAMEORIGIN",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'self'",
}


class Access:
    """An application behind a check of names, whose answers bear headers for browsers."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        """`hosts`: names, beside this machine's own, that requests may ask by; None or "*" let all names in."""
        self.app = app
        # Other servers of this machine have its names too, at other ports: their pages are those of others.
        self.extra = {name_of(host) for host in hosts or ()} - {"", *LOCAL}
        self.hosts = None if hosts is None or "*" in hosts else {*LOCAL, *self.extra}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in more if pair[0] not in given)]
            await send(message)

        reason = self.refusal(Headers(scope=scope))
        app = self.app if reason is None else JSONResponse({"error": problem(403, reason)}, 403)
        return await app(scope, receive, tell)

    def refusal(self, headers: Headers) -> str | None:
        """Why a request is not answered; None if it is."""
        if self.hosts is None:
            return None
        for host in headers.getlist("host"):  # HTTP/1.0, which browsers don't speak, may have none
            if name_of(host) not in self.hosts:
                return (
                    f"This server does not answer to the name {host[:80]!r}. Ask it by its address, or start it with "
                    "--allowed_hosts=NAME."
                )
        for origin in headers.getlist("origin"):
            place = origin.partition("://")[2].lower()
            if not place or (place != headers.get("host", "").lower() and name_of(place) not in self.extra):
                return (
                    f"Pages of {origin[:80]!r} may not ask this server. If that is a proxy's name for it, start it with "
                    "--allowed_hosts=NAME."
                )
        return None


def name_of(place: str) -> str:
    """The name or address in HOST, HOST:PORT, ADDRESS or [ADDRESS]:PORT, "" if it is none."""
    if place.count(":") > 1 and not place.startswith("["):
        return place.lower()
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::\d*)?", place)
    return (found[1] or found[2]).lower().rstrip(".") if found else ""


def page_policy(page: str) -> str:
    """The content security policy of a page: its own scripts and styles, told by their digests, and this server's answers."""
    scripts, styles = _digests(page, "script"), _digests(page, "style")
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'self'"
    )


def _digests(page: str, tag: str) -> str:
    texts = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)
