"""Which URLs a run may live at."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.location import MAX_URL_LENGTH, Location, check_url, overlaps, parse_url

SEGMENTS = st.text(string.ascii_letters + string.digits + "._~=+@,-", min_size=1, max_size=12).filter(
    lambda text: text not in (".", "..")
)
PATHS = st.lists(SEGMENTS, max_size=6).map("/".join)
BUCKETS = st.from_regex(r"[a-z0-9][a-z0-9.-]{1,30}[a-z0-9]", fullmatch=True)
URLS = st.builds("{}://{}/{}".format, st.sampled_from(["s3", "gs", "az"]), BUCKETS, PATHS)


@pytest.mark.parametrize(
    ("url", "checked"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/team/run/", "s3://bucket/team/run"),
        ("gs://bucket/date=2026-01-01/run", "gs://bucket/date=2026-01-01/run"),
        ("az://container/run", "az://container/run"),
        ("file:///mnt/runs/a", "file:///mnt/runs/a"),
        ("/mnt/runs/a/", "file:///mnt/runs/a"),
        ("/mnt/läufe und mehr/a", "file:///mnt/läufe und mehr/a"),
    ],
)
def test_an_allowed_url_is_returned_in_its_one_form(url: str, checked: str) -> None:
    assert check_url(url) == checked


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("", "it is not"),
        ("bucket/run", "it is not"),
        ("s3:/bucket/run", "it is not"),
        ("S3://bucket/run", "it is not"),
        ("http://bucket/run", "scheme http is unknown"),
        ("memory://bucket/run", "scheme memory is unknown"),
        ("simplecache::s3://bucket/run", "it is not"),
        ("s3://bucket/a::file:", "chained"),
        ("s3:///run", "bucket is empty"),
        ("s3://", "bucket is empty"),
        ("s3://bucket/a/../b", "contains '..'"),
        ("s3://bucket/./b", "contains '.'"),
        ("s3://bucket/..", "contains '..'"),
        ("s3://bucket/a//b", "empty part"),
        ("s3://bucket:9000/run", "bucket's name"),
        ("s3://key:secret@bucket/run", "bucket's name"),
        ("s3://bucket?versionId=1", "bucket's name"),
        ("s3://bucket/run?versionId=1", "reinterpret"),
        ("s3://bucket/run#top", "reinterpret"),
        ("s3://bucket/a%2e%2e", "reinterpret"),
        ("s3://bucket/a*b", "reinterpret"),
        ("s3://bucket/a b", "reinterpret"),
        ("s3://bucket/a\\b", "reinterpret"),
        ("s3://bucket/a\nb", "reinterpret"),
        ("s3://bucket/a\x00b", "reinterpret"),
        ("s3://bucket/läufe", "reinterpret"),
        ("file://host/mnt", "file URL"),
        ("file:///", "file URL"),
        ("/", "file URL"),
        ("/mnt/../etc", "contains '..'"),
        ("/mnt/a\x1bb", "reinterpret"),
        ("s3://bucket/" + "a" * MAX_URL_LENGTH, "longer than"),
    ],
)
def test_any_other_url_is_refused_with_its_cause_and_what_is_allowed(url: str, cause: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        check_url(url)

    assert cause in str(raised.value)
    assert "s3://<bucket>/<path>" in raised.value.hint


def test_local_files_can_be_ruled_out() -> None:
    for url in ("file:///mnt/runs", "/mnt/runs"):
        with pytest.raises(ConfigurationError, match="not allowed here") as raised:
            check_url(url, allow_file=False)
        assert "file://" not in raised.value.hint
    assert check_url("s3://bucket/run", allow_file=False) == "s3://bucket/run"


@pytest.mark.parametrize("url", ["s3://AKIA:hunter2@bucket/run", "ftp://AKIA:hunter2@host/run"])
def test_a_password_in_a_url_does_not_reach_the_message(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        check_url(url)
    assert "hunter2" not in str(raised.value)


@given(URLS)
def test_checking_twice_changes_nothing_more(url: str) -> None:
    assert check_url(check_url(url)) == check_url(url)


@given(URLS)
def test_the_path_is_kept_byte_for_byte(url: str) -> None:
    location = parse_url(url)

    assert f"{location.scheme}://{location.bucket}/{location.path}" == url
    assert parse_url(location.url) == location


@given(st.text(max_size=40))
def test_any_text_is_accepted_in_its_one_form_or_refused(text: str) -> None:
    for url in (text, f"s3://{text}", f"s3://bucket/{text}", f"/{text}"):
        try:
            checked = check_url(url)
        except ConfigurationError:
            continue
        assert check_url(checked) == checked
        assert ".." not in checked.split("/")
        assert not set(checked) & set("?#%\\\n\r\x00")


@given(URLS, SEGMENTS)
def test_a_url_overlaps_with_itself_and_with_what_lies_inside(url: str, name: str) -> None:
    inside = f"{check_url(url)}/{name}"

    assert overlaps(url, url)
    assert overlaps(url, inside)
    assert overlaps(inside, url)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("s3://bucket/run", "s3://bucket/run2"),
        ("s3://bucket/team/a", "s3://bucket/team/b"),
        ("s3://bucket/run", "s3://bucket2/run"),
        ("s3://bucket/run", "gs://bucket/run"),
        ("/mnt/run", "/mnt/run-2"),
    ],
)
def test_urls_beside_each_other_do_not_overlap(one: str, other: str) -> None:
    assert not overlaps(one, other)
    assert not overlaps(other, one)


def test_the_whole_bucket_overlaps_with_each_run_in_it() -> None:
    assert overlaps("s3://bucket", "s3://bucket/team/run")


def test_a_location_without_a_path_is_the_bucket() -> None:
    assert Location("s3", "bucket", "").url == "s3://bucket"
