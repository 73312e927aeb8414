"""kvmpy.machine.gdb.address: where a stub may listen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.errors import ConfigError
from kvmpy.machine.gdb.address import MAX_PATH, parse_address


@pytest.mark.parametrize("text", ["unix:/run/vm.gdb", "/run/vm.gdb"])
def test_a_path(text):
    address = parse_address(text)
    assert (address.path, address.host, address.port) == ("/run/vm.gdb", None, None)
    assert str(address) == "/run/vm.gdb"


@pytest.mark.parametrize("text", ["vm.gdb", "./a:1", "/a/b:1234", "a:b"])
def test_what_is_no_port_is_a_path(text):
    assert parse_address(text).path == text


@pytest.mark.parametrize(
    "text", [":1234", "tcp::1234", "tcp:127.0.0.1:1234", "127.0.0.1:1234", "localhost:1234", "tcp:localhost:1234"]
)
def test_a_port_on_loopback(text):
    address = parse_address(text)
    assert (address.path, address.host, address.port) == (None, "127.0.0.1", 1234)
    assert str(address) == "127.0.0.1:1234"


def test_all_of_loopback_is_loopback():
    assert parse_address("tcp:127.1.2.3:1").host == "127.1.2.3"


@pytest.mark.parametrize("text", ["tcp:[::1]:1234", "tcp:::1:1234"])
def test_loopback_of_ipv6(text):
    address = parse_address(text)
    assert (address.host, address.port) == ("::1", 1234)
    assert str(address) == "[::1]:1234"


@pytest.mark.parametrize("text", ["tcp:0.0.0.0:1234", "192.168.1.1:1234", "tcp:[::]:1", "tcp:[2001:db8::1]:1"])
def test_other_hosts_are_refused(text):
    with pytest.raises(ConfigError, match="not loopback"):
        parse_address(text)


@pytest.mark.parametrize("text", ["tcp:example.org:1234", "example.org:1234", "tcp:[::1%lo]:1", "tcp:127.1:1"])
def test_names_are_not_looked_up(text):
    with pytest.raises(ConfigError):
        parse_address(text)


@pytest.mark.parametrize(
    "text", [":65536", ":abc", ":-1", ":", "tcp:", "tcp:127.0.0.1", "tcp:127.0.0.1:x", "tcp:127.0.0.1:-1", "tcp:1234"]
)
def test_a_port_is_a_number_up_to_65535(text):
    with pytest.raises(ConfigError, match="port"):
        parse_address(text)


def test_a_bare_number_is_asked_about():
    with pytest.raises(ConfigError, match="write :1234"):
        parse_address("1234")


@pytest.mark.parametrize("text", ["", "unix:", "a\0b", "a\ud800b", "/" + "a" * MAX_PATH])
def test_what_names_no_socket(text):
    with pytest.raises(ConfigError):
        parse_address(text)


def test_the_error_names_the_option():
    with pytest.raises(ConfigError, match=r"^gdb_stub: "):
        parse_address("", name="gdb_stub")


@given(st.text() | st.text(alphabet="tcpunix:[]0123456789./%"))
def test_no_text_raises_anything_else(text):
    try:
        address = parse_address(text)
    except ConfigError:
        return
    assert (address.path is None) != (address.port is None)
