"""The domain of a document: the host of its URL, without port, user or password.

MeCo (arXiv 2501.01956) takes the host with ``re.sub(r'https?://', '', url).split('/')[0]``, which keeps ports
and passwords and is fooled by case and by query strings; here the URL is parsed.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import idna

if TYPE_CHECKING:
    import tldextract

# After the slashes: user and password up to the last @ of the authority, or, where a password has a bare / ? #
# in it (no port is like that), up to the first @.
_USER = r"(?:[^/\\?#]*@|[^/\\?#@:\[]*:(?!\d*(?:[/\\?#]|$))[^@\s]*@)"
_USERINFO = re.compile(rf"(\s*(?:[A-Za-z][A-Za-z0-9+.\-]*:[/\\]{{1,2}}|[/\\]{{2}})){_USER}|(\s*)[^/\\?#]*@")
# In these the part before the @ is an address, not a login.
_ADDRESS_SCHEMES = ("mailto:", "sip:", "sips:", "xmpp:", "acct:", "mid:", "cid:")


def host_of(url: str | None) -> str | None:
    """The host of ``url``: lower case, IDNA ASCII form, no port, no user, no trailing dot.

    A URL without a scheme counts as one (``example.com/a``, ``//cdn.example.com/a``). None for an empty or
    unparsable URL and for schemes without a host (``mailto:``, ``file:///``).

    >>> host_of("HTTPS://user:secret@EN.Wikipedia.org.:443/wiki?x=1")
    'en.wikipedia.org'
    """
    text = (url or "").strip()
    if not text:
        return None
    scheme, separator, _ = text.partition("://")
    if not (separator and scheme.replace("+", "").replace("-", "").replace(".", "").isalnum()):
        if not text.startswith("//") and _has_opaque_scheme(text):
            return None
        text = "//" + text.lstrip("/")
    try:
        host = urlsplit(text).hostname
    except ValueError:
        return None
    return _ascii(host.strip(".")) if host else None


def without_userinfo(url: str) -> str:
    """``url`` without ``user:password@``: credentials must not end up in training data.

    >>> without_userinfo("https://user:secret@example.com:8080/a?mail=b@c")
    'https://example.com:8080/a?mail=b@c'
    """
    if "@" not in url or url.lstrip().lower().startswith(_ADDRESS_SCHEMES):
        return url
    match = _USERINFO.match(url)
    return (match[1] or match[2] or "") + url[match.end() :] if match else url


def _has_opaque_scheme(text: str) -> bool:
    """True for ``mailto:a@b`` and ``data:…``; False for ``host:8080/a`` and plain ``host/a``."""
    scheme, separator, rest = text.partition(":")
    return bool(separator) and scheme.isalpha() and not rest[:1].isdigit() and "/" not in scheme


def _ascii(host: str) -> str | None:
    if not host or any(character.isspace() for character in host):
        return None
    if host.isascii():
        return host.lower()
    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except idna.IDNAError:
        return None


def registered_domain_of(host: str | None) -> str | None:
    """The registrable domain (``bbc.co.uk`` of ``news.bbc.co.uk``); None for IP addresses, no suffix."""
    if not host:
        return None
    return _extractor()(host).top_domain_under_public_suffix or None


def suffix_of(host: str | None) -> str | None:
    """The public suffix (``co.uk`` of ``news.bbc.co.uk``); None for IP addresses and no suffix."""
    if not host:
        return None
    return _extractor()(host).suffix or None


@cache
def _extractor() -> tldextract.TLDExtract:
    import tldextract

    # No list is downloaded and nothing is cached on disk: the list inside the package is used.
    return tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
