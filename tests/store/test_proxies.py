"""Which requests go through a proxy: by Go's rules, for small objects and large ones, through every client."""

from __future__ import annotations

import pytest

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.store.http.proxies import proxy_for

CASES = [
    ("", "store.internal", True),
    ("*", "store.internal", False),
    ("internal", "store.internal", False),
    ("internal", "internal", False),
    ("internal", "notinternal", True),
    (".internal", "store.internal", False),
    (".internal", "internal", True),
    ("*.internal", "store.internal", False),
    ("STORE.internal", "store.INTERNAL", False),
    ("other, store.internal", "store.internal", False),
    ("store.internal:9000", "store.internal", False),
    ("store.internal:9001", "store.internal", True),
    ("10.0.0.0/8", "10.1.2.3", False),
    ("10.0.0.0/8", "11.1.2.3", True),
    ("10.0.0.0/8", "store.internal", True),
    ("10.1.2.3", "10.1.2.3", False),
    ("10.1.2.3:9000", "10.1.2.3", False),
    ("10.1.2.3:80", "10.1.2.3", True),
    ("fd00::/8", "fd12::1", False),
    ("[fd12::1]:9000", "fd12::1", False),
    ("", "localhost", False),
    ("", "127.0.0.9", False),
    ("", "::1", False),
]


@pytest.mark.parametrize(("exceptions", "host", "through"), CASES)
def test_exceptions_are_those_of_go(exceptions: str, host: str, through: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", exceptions)
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")

    assert (proxy_for("http", host, 9000) is not None) is through
    assert proxy_for("https", host, 9000) is None


def test_a_proxy_has_user_and_password_and_shows_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "me:pass%40word@proxy:3128")
    proxy = proxy_for("https", "store.example", 443)

    assert proxy is not None
    assert (proxy.host, proxy.port, str(proxy)) == ("proxy", 3128, "proxy:3128")
    assert proxy.authorization == {"Proxy-Authorization": "Basic bWU6cGFzc0B3b3Jk"}
    assert "pass" not in repr(proxy)


@pytest.mark.parametrize("text", ["socks5://proxy:1080", "http://", "http://proxy:port"])
def test_what_is_no_proxy_is_refused_without_being_shown(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", text)

    with pytest.raises(ConfigurationError, match="HTTPS_PROXY: its value is not the URL of a proxy"):
        proxy_for("https", "store.example", 443)
