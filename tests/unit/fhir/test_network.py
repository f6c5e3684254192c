import ipaddress

import pytest

from rayhook.fhir.network import AddressKind, AddressPolicy, Deadline, address_kind


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("8.8.8.8", "PUBLIC"),
        ("2606:4700:4700::1111", "PUBLIC"),
        ("127.0.0.1", "LOOPBACK"),
        ("127.255.0.3", "LOOPBACK"),
        ("::1", "LOOPBACK"),
        ("::ffff:127.0.0.1", "LOOPBACK"),
        ("::127.0.0.1", "LOOPBACK"),
        ("64:ff9b::7f00:1", "LOOPBACK"),
        ("2002:7f00:1::", "LOOPBACK"),
        ("10.1.2.3", "PRIVATE"),
        ("172.31.255.1", "PRIVATE"),
        ("192.168.0.1", "PRIVATE"),
        ("100.64.0.1", "PRIVATE"),
        ("fd12::1", "PRIVATE"),
        ("::ffff:10.0.0.1", "PRIVATE"),
        ("169.254.169.254", "FORBIDDEN"),
        ("::ffff:169.254.169.254", "FORBIDDEN"),
        ("64:ff9b::a9fe:a9fe", "FORBIDDEN"),
        ("100.100.100.200", "FORBIDDEN"),
        ("fd00:ec2::254", "FORBIDDEN"),
        ("fd20:ce::254", "FORBIDDEN"),
        ("fe80::1", "FORBIDDEN"),
        ("fec0::1", "PRIVATE"),
        ("0.0.0.0", "FORBIDDEN"),
        ("::", "FORBIDDEN"),
        ("224.0.0.1", "FORBIDDEN"),
        ("239.255.255.250", "FORBIDDEN"),
        ("ff02::1", "FORBIDDEN"),
        ("255.255.255.255", "FORBIDDEN"),
        ("240.0.0.1", "FORBIDDEN"),
        ("192.0.2.1", "FORBIDDEN"),
        ("198.18.0.1", "FORBIDDEN"),
        ("2001:db8::1", "FORBIDDEN"),
    ],
)
def test_address_kind(address, kind):
    assert address_kind(ipaddress.ip_address(address)) is AddressKind[kind]


@pytest.mark.parametrize(
    ("policy", "host", "port", "address", "expected"),
    [
        (AddressPolicy(), "ehr.example", 443, "8.8.8.8", True),
        (AddressPolicy(), "ehr.example", 443, "10.0.0.1", False),
        (AddressPolicy(), "ehr.example", 443, "127.0.0.1", False),
        (AddressPolicy(allow_loopback=True), "ehr.example", 443, "127.0.0.1", True),
        (AddressPolicy(allow_loopback=True), "ehr.example", 443, "10.0.0.1", False),
        (AddressPolicy(allow_loopback=True), "localhost", 80, "8.8.8.8", False),
        (
            AddressPolicy(private_endpoints=frozenset({("ehr.example", 443)})),
            "ehr.example",
            443,
            "10.0.0.1",
            True,
        ),
        (
            AddressPolicy(private_endpoints=frozenset({("ehr.example", 443)})),
            "ehr.example",
            443,
            "127.0.0.1",
            True,
        ),
        (
            AddressPolicy(private_endpoints=frozenset({("ehr.example", 443)})),
            "ehr.example",
            8443,
            "10.0.0.1",
            False,
        ),
        (
            AddressPolicy(private_endpoints=frozenset({("ehr.example", 443)})),
            "other.example",
            443,
            "10.0.0.1",
            False,
        ),
        (
            AddressPolicy(True, frozenset({("ehr.example", 443)})),
            "ehr.example",
            443,
            "169.254.169.254",
            False,
        ),
    ],
)
def test_policy(policy, host, port, address, expected):
    assert policy.permits(host, port, ipaddress.ip_address(address)) is expected


def test_deadline_runs_out():
    assert Deadline.after(-1).remaining() < 0


def test_nearer_deadline_wins():
    assert Deadline.after(10).within(1).remaining() <= 1


def test_further_deadline_changes_nothing():
    deadline = Deadline.after(1)
    assert deadline.within(10) is deadline
