"""Where a request comes from: this machine or another, this site or another.

A browser on the machine of a service that asks for no key can be made to send requests by any page that it shows.
Two things give such requests away, and a page can change neither: the Host header, which is the name that the
page's address has, and Origin or Sec-Fetch-Site, which say whose page it is.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request

from mixwright.errors import ForbiddenError

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_JSON = re.compile(r"application/(json|[\w.+-]+\+json)\s*(;.*)?", re.IGNORECASE)
_PORT = re.compile(r":\d{0,5}$")


def is_loopback(host: str) -> bool:
    """Whether an address to listen on, or all that a name stands for, are reached from this machine only."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM) if host else []
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(
        ipaddress.ip_address(str(each[4][0]).partition("%")[0]).is_loopback for each in found
    )


def refuse_other_hosts(request: Request, allowed: Collection[str]) -> None:
    """Raise HTTPException 421 unless the Host header is loopback's or one of the ``allowed`` names.

    A page of another name that has its name resolve to 127.0.0.1 (DNS rebinding) would else be of the same site.
    Raises ForbiddenError for a request that a proxy passed on: whoever reaches the proxy is not on this machine.
    """
    server = request.scope.get("server")
    if server and not _may_be_loopback(server[0]):
        raise ForbiddenError(
            "no key is asked for here, which is for loopback only: start the service with MIXWRIGHT_AUTH=on"
        )
    if any(name in request.headers for name in _FORWARDED):
        raise ForbiddenError(
            "this came through a proxy, and no key is asked for here: start the service with MIXWRIGHT_AUTH=on"
        )
    hosts = request.headers.getlist("host")
    name = _PORT.sub("", hosts[0]).strip("[]").rstrip(".").lower() if len(hosts) == 1 else ""
    if name not in allowed and not _is_loopback_name(name):
        raise HTTPException(
            421,
            "the service answers to localhost only as long as it asks for no key: use that name, or start it with "
            "MIXWRIGHT_AUTH=on or this name in MIXWRIGHT_ALLOWED_HOSTS",
        )


def refuse_other_sites(request: Request, *, must_say: bool) -> None:
    """Raise ForbiddenError for a request that changes something and was sent by the page of another site.

    What is no browser sends neither header: it is refused where it ``must_say`` which page sent it.
    """
    if request.method in _SAFE_METHODS:
        return
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        same = site in ("same-origin", "none")
    else:
        same = not must_say if origin is None else _is_own(request, origin)
    if not same:
        raise ForbiddenError("this was sent by a page of another site: use the service's own pages, or a key")


def refuse_other_forms(request: Request) -> None:
    """Raise HTTPException 415 for a body that is not JSON.

    A page may send forms and plain text to any site without being asked; JSON it may not.
    """
    if request.method in _SAFE_METHODS:
        return
    given = request.headers.getlist("content-type")
    is_json = len(given) == 1 and _JSON.fullmatch(given[0].strip()) is not None
    if not is_json and (given or has_body(request)):
        raise HTTPException(415, "bodies are JSON here: send  Content-Type: application/json")


def has_body(request: Request) -> bool:
    """Whether the headers announce a body."""
    return "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"


def safe_next(address: str | None) -> str:
    """The address if it is a path of this service, else ``/``: nobody is led elsewhere after signing in."""
    if not address or not address.startswith("/") or re.search(r"[\x00-\x20\x7f\\]", address):
        return "/"
    # //host and /\host are other sites to a browser.
    if address.startswith("//") or urlsplit(address).netloc or urlsplit(address).scheme:
        return "/"
    return address


def _may_be_loopback(address: str) -> bool:
    """False for an address of the network that a connection came in by. Sockets without one have other names."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return True


def _is_loopback_name(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_own(request: Request, origin: str) -> bool:
    """Whether an Origin is the service's. Behind a proxy that takes TLS off, its scheme is not the request's."""
    host = request.headers.get("host", "").lower()
    try:
        parts = urlsplit(origin.lower())
        own = urlsplit(f"{parts.scheme}://{host}")
        defaults = {"http": 80, "https": 443}
        same = (parts.hostname, parts.port or defaults.get(parts.scheme)) == (
            own.hostname,
            own.port or defaults.get(parts.scheme),
        )
    except ValueError:
        return False
    secure = parts.scheme == "https" or request.url.scheme == "http"
    return same and parts.scheme in defaults and parts.hostname is not None and secure
