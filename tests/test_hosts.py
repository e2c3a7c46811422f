"""Hosts: the cases that a regular expression gets wrong, and others; expected values written by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixwright.hosts import host_of, registered_domain_of, suffix_of, without_userinfo
from mixwright.jobs.documents import normal_domain


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://en.wikipedia.org/wiki/Ham", "en.wikipedia.org"),
        ("HTTPS://EN.Wikipedia.org:443/x", "en.wikipedia.org"),
        ("http://user:pw@h:8080/a", "h"),
        ("https://example.com?x=1", "example.com"),
        ("https://example.com#top", "example.com"),
        ("//cdn.x/a", "cdn.x"),
        ("ftp://files.example.org/pub", "files.example.org"),
        ("example.com/a/b", "example.com"),
        ("example.com", "example.com"),
        ("example.com:8080/a", "example.com"),
        ("https://example.com./a", "example.com"),
        ("  https://example.com/a \n", "example.com"),
        ("https://bücher.example/a", "xn--bcher-kva.example"),
        ("https://BÜCHER.example/a", "xn--bcher-kva.example"),
        ("http://192.168.0.1:80/", "192.168.0.1"),
        ("http://[2001:db8::1]:443/a", "2001:db8::1"),
        ("https://example.com/a@b:c", "example.com"),
        ("mailto:someone@example.com", None),
        ("data:text/plain,hello", None),
        ("file:///etc/hosts", None),
        ("http://[broken/", None),
        ("https://", None),
        ("not a host", None),
        ("", None),
        ("   ", None),
        (None, None),
    ],
)
def test_host_of(url: str | None, host: str | None) -> None:
    assert host_of(url) == host


@given(
    scheme=st.sampled_from(["http://", "HTTPS://", "ftp://", "//", ""]),
    user=st.sampled_from(["", "user@", "user:pass@", "u:1@"]),
    host=st.from_regex(r"[A-Za-z][a-zA-Z0-9]{0,8}(\.[a-zA-Z][a-z0-9]{1,5}){1,3}", fullmatch=True),
    port=st.sampled_from(["", ":80", ":65535"]),
    rest=st.sampled_from(["", "/", "/a/b?c=d@e:f#g", "?q=http://other.example/", "#x@y"]),
)
def test_host_and_userinfo_of_any_url_put_together(
    scheme: str, user: str, host: str, port: str, rest: str
) -> None:
    cleaned = without_userinfo(scheme + user + host + port + rest)
    assert cleaned == scheme + host + port + rest
    assert host_of(cleaned) == host.lower()


@pytest.mark.parametrize(
    ("url", "cleaned"),
    [
        ("https://user:secret@example.com:8080/a?mail=b@c", "https://example.com:8080/a?mail=b@c"),
        ("https://secret@example.com", "https://example.com"),
        ("https://user:se@cret@example.com/", "https://example.com/"),
        ("https://user:se/cret@example.com/a@b", "https://example.com/a@b"),
        ("https://user:se#cret@example.com/", "https://example.com/"),
        ("  //user:secret@example.com/", "  //example.com/"),
        ("http:\\\\user:secret@example.com\\a", "http:\\\\example.com\\a"),
        ("user:secret@example.com/a", "example.com/a"),
        ("http://[2001:db8::1]:80/a@b", "http://[2001:db8::1]:80/a@b"),
        ("https://example.com/@user/1", "https://example.com/@user/1"),
        ("https://example.com:443/@user/1", "https://example.com:443/@user/1"),
        ("https://example.com?to=a@b", "https://example.com?to=a@b"),
        ("mailto:someone@example.com", "mailto:someone@example.com"),
        ("file:///home/a@b.txt", "file:///home/a@b.txt"),
        ("", ""),
    ],
)
def test_without_userinfo(url: str, cleaned: str) -> None:
    assert without_userinfo(url) == cleaned


@pytest.mark.parametrize(
    ("host", "registered", "suffix"),
    [
        ("news.bbc.co.uk", "bbc.co.uk", "co.uk"),
        ("example.com", "example.com", "com"),
        ("192.168.0.1", None, None),
        ("localhost", None, None),
        (None, None, None),
    ],
)
def test_registered_domain_and_suffix(host: str | None, registered: str | None, suffix: str | None) -> None:
    assert registered_domain_of(host) == registered
    assert suffix_of(host) == suffix


@pytest.mark.parametrize(
    ("value", "domain"),
    [
        ("Wikipedia", "wikipedia"),
        ("EN.Wikipedia.org", "en.wikipedia.org"),
        ("https://user:pw@EN.Wikipedia.org/wiki/Ham", "en.wikipedia.org"),
        ("en.wikipedia.org/wiki/Ham", "en.wikipedia.org"),
        ("Science & Technology", "Science & Technology"),
        ("news/politics", "news/politics"),
        ("C#", "C#"),
        ("Bücher", "Bücher"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("  law  ", "law"),
        ("", None),
        ("  ", None),
        (None, None),
        (["a"], None),
    ],
)
def test_normal_domain(value: object, domain: str | None) -> None:
    assert normal_domain(value) == domain
