"""Who may do what, and what a browser of somebody else's page may not.

Without tokens everybody who reaches the service is an operator, so it is then bound to this machine alone. With tokens
a caller shows one as `Authorization: Bearer …`, or has a cookie that was given for one. `Guard` stands before all
routes: it looks at the Host, the origin, the size and the caller of each request, and sets the headers of each answer.
"""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, Literal, Self

from starlette.datastructures import Headers, MutableHeaders

from flashvideo_ray.serve.problems import Problem, problem_response
from flashvideo_ray.settings import SettingsError

Role = Literal["viewer", "reviewer", "operator"]
ROLES: tuple[Role, ...] = ("viewer", "reviewer", "operator")  # each may do what those before it may
TOKENS_VARIABLE = "FLASHVIDEO_RAY_TOKENS"
COOKIE = "flashvideo_ray_session"
SESSION_SECONDS = 12 * 3600
BODY_BYTES = 256 * 1024
REQUESTED_WITH = "flashvideo-ray"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
_SHORTEST_TOKEN = 16
_FREE_GUESSES = 5  # wrong tokens from an address that are answered at once
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 4.0  # seconds; each further one waits twice as long as the one before it
_FORGOTTEN_SECONDS = 600.0
_ADDRESSES = 10_000  # remembered
_SESSION = "/api/v1/session"
_OPEN_PATHS = ("/", _SESSION, "/api/v1/me", "/api/v1/openapi.json")  # and /static/: what a login page needs
_READS = ("GET", "HEAD", "OPTIONS")
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

log = logging.getLogger("ray.serve")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Caller:
    """Who asks. `name` stands in the decisions that they make."""

    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """Whether the caller has this role or a higher one."""
        return ROLES.index(self.role) >= ROLES.index(role)


class Tokens:
    """The tokens that are known: only their digests are kept in memory."""

    def __init__(self, callers: Mapping[bytes, Caller]):
        self._callers = dict(callers)

    def __bool__(self) -> bool:
        return bool(self._callers)

    @classmethod
    def load(cls, path: str | None, environ: Mapping[str, str] = os.environ) -> Self:
        """From a file, or from the environment: lines `role:name:token`. Raises SettingsError, without the token."""
        source = path or TOKENS_VARIABLE
        try:
            text = Path(path).read_text() if path is not None else environ.get(TOKENS_VARIABLE, "")
        except OSError as error:
            raise SettingsError(f"{path}: the tokens cannot be read: {error.strerror}") from None
        callers = {}
        for number, line in enumerate(re.split(r"[\n;]", text), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            role, _, rest = line.strip().partition(":")
            name, _, token = rest.partition(":")
            if role not in ROLES or not name or len(token) < _SHORTEST_TOKEN:
                raise SettingsError(
                    f"{source} line {number}: expected role:name:token, the role one of {', '.join(ROLES)} and the "
                    f"token {_SHORTEST_TOKEN} characters or more (`openssl rand -hex 24` makes one)"
                )
            callers[_digest(token)] = Caller(name, next(known for known in ROLES if known == role))
        if path is not None and not callers:
            raise SettingsError(f"{path}: no tokens in it; a line is role:name:token")
        return cls(callers)

    def caller(self, token: str) -> Caller | None:
        """Whose token it is. All are compared, each in constant time."""
        shown, found = _digest(token), None
        for digest, caller in self._callers.items():
            if hmac.compare_digest(digest, shown):
                found = caller
        return found

    def session(self, token: str) -> str:
        """A cookie's value for a token: it names no secret, and ends with the token or after `SESSION_SECONDS`."""
        until = str(int(time.time()) + SESSION_SECONDS)
        return f"{until}.{_signed(_digest(token), until)}"

    def of_session(self, value: str) -> Caller | None:
        """Whose session it is, if it is one and not over."""
        until, _, signature = value.partition(".")
        found = None
        for digest, caller in self._callers.items():
            if hmac.compare_digest(_signed(digest, until).encode(), signature.encode()):
                found = caller
        return found if found is not None and until.isdecimal() and int(until) > time.time() else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _signed(key: bytes, text: str) -> str:
    return hmac.new(key, f"session/{text}".encode(), "sha256").hexdigest()


class Guesses:
    """Wrong tokens, by the address that they come from. Each leaves its sender waiting, and many leave log lines."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self._seen: dict[str, tuple[int, float]] = {}

    def wrong(self, address: str) -> float:
        """Take note of a wrong token. Returns how many seconds its answer has to wait."""
        count, last = self._seen.pop(address, (0, 0.0))
        count = 1 if self.clock() - last > _FORGOTTEN_SECONDS else count + 1
        if len(self._seen) >= _ADDRESSES:
            del self._seen[next(iter(self._seen))]  # the one that was silent for longest
        self._seen[address] = (count, self.clock())
        wait = (
            0.0 if count <= _FREE_GUESSES else min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(count - _FREE_GUESSES - 1, 30))
        )
        if count & (count - 1) == 0:  # at 1, 2, 4, 8 …: somebody who guesses fills no disk
            log.warning("api: %d wrong token(s) from %s; the next ones wait up to %g s", count, address, _LONGEST_WAIT)
        return wait


def local_caller() -> Caller:
    """Whoever works on this machine, where no tokens are asked for."""
    try:
        return Caller(getpass.getuser(), "operator")
    except (KeyError, OSError):
        return Caller("local", "operator")


class Guard:
    """ASGI middleware. What it lets through has `scope["caller"]`: a Caller, or None where anybody may look."""

    def __init__(self, app: App, tokens: Tokens, hosts: Iterable[str] = ()):
        self.app = app
        self.tokens = tokens
        self.hosts = frozenset(host.lower() for host in hosts)
        self.anybody = None if tokens else local_caller()
        self.guesses = Guesses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                if scope.get("wrong_token") or (scope["path"] == _SESSION and message["status"] == 401):
                    address = (scope.get("client") or ["an unknown address"])[0]
                    await asyncio.sleep(self.guesses.wrong(address))
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._admit(scope, Headers(scope=scope))
        except Problem as problem:
            return await problem_response(problem)(scope, receive, answer)
        await self.app(scope, _bounded(receive), answer)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Raise Problem unless the request may go on."""
        host = headers.get("host", "").lower()
        if self.hosts and _name(host) not in self.hosts:
            raise Problem(421, "This service does not answer for that host name; --allow-host adds one.")
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if scope["method"] not in _READS:
            if headers.get("x-requested-with") != REQUESTED_WITH:
                raise Problem(
                    403, f"A request that changes something needs the header X-Requested-With: {REQUESTED_WITH}."
                )
            if site not in (None, "same-origin", "none"):
                raise Problem(403, "Requests from other sites are refused.")
            if origin is not None and origin.lower().partition("://")[2] != host:
                raise Problem(403, "Requests from other origins are refused.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > BODY_BYTES:
            raise Problem(413, f"A request may have {BODY_BYTES} bytes.")
        scope["caller"] = self.anybody or self._caller(scope, headers)
        path = scope["path"]
        if scope["caller"] is None and path not in _OPEN_PATHS and not path.startswith("/static/"):
            raise Problem(401, "A token is needed.", headers={"WWW-Authenticate": "Bearer"})

    def _caller(self, scope: Scope, headers: Headers) -> Caller | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            found = self.tokens.caller(token.strip())
            scope["wrong_token"] = found is None and bool(token.strip())
            return found
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return None
        return self.tokens.of_session(cookie.value) if cookie is not None else None


def _bounded(receive: Receive) -> Receive:
    """A body sent in chunks has no Content-Length: it is counted as it comes."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > BODY_BYTES:
            raise Problem(413, f"A request may have {BODY_BYTES} bytes.")
        return message

    return counted


def _name(host: str) -> str:
    """A Host header without its port."""
    return re.sub(r":\d+$", "", host)
