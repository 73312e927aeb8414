"""kvmpy.config.cpu: the text of `--cpu`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.config.cpu import LEVELS, MAX_TEXT_LENGTH, CpuConfig, parse_cpu
from kvmpy.errors import ConfigError


def refusal(function, *arguments):
    """The `ConfigError` that the call raises, or None."""
    try:
        function(*arguments)
    except ConfigError as error:
        return error
    return None


def test_host_is_plain():
    assert parse_cpu("host").plain


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_a_model(level):
    config = parse_cpu(level)
    assert (config.model, config.plain) == (level, False)


def test_features_are_added_and_removed():
    config = parse_cpu("x86-64-v2,+aes,-rdrand,+adx")
    assert (config.added, config.removed) == ({"aes", "adx"}, {"rdrand"})


@pytest.mark.parametrize("name", ["t2.json", "./t2", "/etc/t2.json"])
def test_a_name_with_a_slash_or_a_suffix_is_a_template(name):
    config = parse_cpu(f"{name},-avx")
    assert (config.template, config.model, config.removed) == (name, "host", {"avx"})


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "begin with host"),
        ("+aes", "none of host"),
        (",+aes", "begin with host"),
        ("hsot", "none of host"),
        ("host,aes", "neither + nor -"),
        ("host,", "neither + nor -"),
        ("host,+", "not the name"),
        ("host,+a b", "not the name"),
        ("host,+" + "a" * 33, "not the name"),
        ("host,+aes,-aes", "say one"),
        ("/a\0b", "no file name"),
        ("host" + ",+aes" * MAX_TEXT_LENGTH, "too many"),
    ],
)
def test_what_makes_no_sense_is_refused(text, part):
    with pytest.raises(ConfigError, match=part.replace("+", r"\+")):
        parse_cpu(text)


def test_a_template_goes_with_the_host_alone():
    with pytest.raises(ConfigError, match="not to be had with x86-64-v2"):
        CpuConfig("x86-64-v2", template=b"{}")


def test_an_empty_template_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        CpuConfig(template=b"")


@given(st.text(alphabet="host,+-avx2.json/ \0é", max_size=40))
def test_any_text_is_read_or_refused_in_one_short_sentence(text):
    assert len(str(refusal(parse_cpu, text))) < 300
