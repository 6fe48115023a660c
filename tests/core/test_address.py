"""An address names a run and perhaps a snapshot; it reads back from how it is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.core.address import RunAddress, parse_address
from checkpoint_sidecar.core.errors import ConfigurationError

SEGMENTS = st.text("abcXYZ019._~=+@,:-", min_size=1, max_size=12).filter(
    lambda text: text not in (".", "..") and "::" not in text
)
SELECTORS = st.one_of(
    st.sampled_from(["", "latest", "best"]),
    st.integers(0, 10**12).map(str),
    st.from_regex(r"[a-z][a-z0-9-]{0,40}", fullmatch=True),
)


@given(st.sampled_from(["s3", "gs", "az"]), st.lists(SEGMENTS, min_size=1, max_size=4), SELECTORS)
def test_an_address_reads_back_from_its_text(scheme: str, path: list[str], selector: str) -> None:
    address = RunAddress(f"{scheme}://bucket/{'/'.join(path)}", selector)
    assert parse_address(str(address)) == address


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_usage_error(text: str) -> None:
    try:
        address = parse_address(text)
    except ConfigurationError:
        return
    assert "\n" not in address.url
    assert address.url


@pytest.mark.parametrize(
    ("text", "url", "selector"),
    [
        ("s3://bucket/run", "s3://bucket/run", ""),
        ("s3://bucket/run/", "s3://bucket/run", ""),
        ("s3://bucket/run@latest", "s3://bucket/run", "latest"),
        ("s3://bucket/run@best", "s3://bucket/run", "best"),
        ("s3://bucket/run@900", "s3://bucket/run", "900"),
        ("s3://bucket/run@step-900-2-abcdefg2", "s3://bucket/run", "step-900-2-abcdefg2"),
        ("s3://bucket/me@home/run", "s3://bucket/me@home/run", ""),
        ("s3://bucket/me@home/", "s3://bucket/me@home", ""),
        ("s3://bucket/me@home@latest", "s3://bucket/me@home", "latest"),
        ("/data/runs/a@12", "file:///data/runs/a", "12"),
        ("memory://runs/a@12", "memory://runs/a", "12"),
    ],
)
def test_the_last_at_sign_of_the_last_segment_begins_the_selector(text: str, url: str, selector: str) -> None:
    assert parse_address(text) == RunAddress(url, selector)


@pytest.mark.parametrize(
    "text", ["", "run", "s3://", "s3:///run", "s3://bucket/run@", "s3://bucket/run@a b", "s3://bucket/a//b", "ftp:/x"]
)
def test_a_text_that_is_no_address_is_a_usage_error(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_address(text)


@pytest.mark.parametrize("text", ["s3://name:secret@bucket/run", "s3://name:secret@bucket", "s3://name:secret@b/run@"])
def test_a_password_in_an_address_is_not_repeated(text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse_address(text)
    assert "secret" not in str(raised.value)
