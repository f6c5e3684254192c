"""Whom an address stands for when tries are counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayhook.auth.rate import network_of


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_itself_however_the_socket_shows_it(address):
    assert network_of(str(address)) == network_of(f"::ffff:{address}") == str(address)


@given(st.ip_addresses(v=6, network="2000::/3"), st.integers(0, 2**64 - 1))
def test_all_addresses_of_one_desk_are_one(address, host):
    neighbour = type(address)(int(address) >> 64 << 64 | host)
    assert network_of(str(address)) == network_of(str(neighbour))


@pytest.mark.parametrize("other", ["2001:db8:0:1::1", "2001:db9::1", "192.0.2.1"])
def test_others_are_others(other):
    assert network_of("2001:db8::1") != network_of(other)


@pytest.mark.parametrize("name", ["", "unknown", "testclient"])
def test_what_is_no_address_is_itself(name):
    assert network_of(name) == name
