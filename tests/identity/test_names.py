"""Names: three forms, one spelling each, everything else refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsec.errors import CertificateError
from fedsec.identity.names import PeerName, Role, admin_uri, check_name, node_uri, parse_uri, server_uri, uri_of

PARTS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,127}", fullmatch=True)
SERVERS = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,48}[a-z0-9])?", fullmatch=True)


@given(federation=PARTS, site=PARTS, client_id=PARTS)
def test_node_names_are_read_back(federation, site, client_id):
    uri = node_uri(federation, site, client_id)
    assert parse_uri(uri) == PeerName(federation, Role.NODE, site, client_id)
    assert parse_uri(uri).uri == uri


@given(federation=PARTS, name=SERVERS)
def test_server_names_are_read_back(federation, name):
    uri = server_uri(federation, name)
    assert parse_uri(uri) == PeerName(federation, Role.SERVER, None, name)
    assert parse_uri(uri).uri == uri


@given(federation=PARTS, name=PARTS)
def test_admin_names_are_read_back(federation, name):
    uri = admin_uri(federation, name)
    assert parse_uri(uri) == PeerName(federation, Role.ADMIN, None, name)
    assert parse_uri(uri).uri == uri


@pytest.mark.parametrize(("role", "site"), [(Role.NODE, None), (Role.SERVER, "basel"), (Role.ADMIN, "basel")])
def test_only_a_node_has_a_site(role, site):
    with pytest.raises(CertificateError, match="site"):
        uri_of("hearts.example", role, site, "x")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "hearts.example",
        "spiffe://",
        "spiffe://hearts.example",
        "spiffe://hearts.example/",
        "SPIFFE://hearts.example/server/main",
        "https://hearts.example/server/main",
        "spiffe:/hearts.example/server/main",
        "spiffe:///server/main",
        "spiffe://hearts.example/server/",
        "spiffe://hearts.example/server/main/",
        "spiffe://hearts.example/server//main",
        "spiffe://hearts.example/server/main?x=1",
        "spiffe://hearts.example/server/main#x",
        "spiffe://hearts.example/server/main\n",
        " spiffe://hearts.example/server/main",
        "spiffe://hearts.example/server/ma%69n",
        "spiffe://hearts.example/server/..",
        "spiffe://hearts.example/server/.hidden",
        "spiffe://hearts.example/server/Main",
        "spiffe://Hearts.example/server/main",
        "spiffe://user@hearts.example/server/main",
        "spiffe://hearts.example:443/server/main",
        "spiffe://hearts.example/Server/main",
        "spiffe://hearts.example/admin/",
        "spiffe://hearts.example/admin/a/b",
        "spiffe://hearts.example/site/basel/admin/ada",
        "spiffe://hearts.example/node/client-7",
        "spiffe://hearts.example/site/basel/server/main",
        "spiffe://hearts.example/site/basel/node/",
        "spiffe://hearts.example/site/basel/node/a/b",
        "spiffe://hearts.example/site//node/client-7",
        "spiffe://hearts.example/server/m\u0430in",  # a Cyrillic letter
        "spiffe://hearts.example/server/m\u0661",  # an Arabic digit
        "spiffe://hearts.example/server/\0",
        "spiffe://hearts.example/server/" + "a" * 129,
    ],
)
def test_other_spellings_are_refused(uri):
    with pytest.raises(CertificateError, match="not the name of a node, server or admin"):
        parse_uri(uri)


@pytest.mark.parametrize(
    "part", ["", "A", ".a", "-a", "_a", "a/b", "a\\b", "..", "a b", "a\n", "a%62", "a:1", "a@b", "\u00e4", "a" * 129, "a\0"]
)
def test_parts_that_may_not_stand_in_a_name(part):
    for make in (lambda: node_uri(part, "s", "c"), lambda: node_uri("f", part, "c"), lambda: node_uri("f", "s", part),
                 lambda: server_uri(part, "n"), lambda: server_uri("f", part), lambda: check_name("part", part)):  # fmt: skip
        with pytest.raises(CertificateError):
            make()


@given(st.text())
def test_whatever_is_read_is_spelled_back(text):
    try:
        name = parse_uri(text)
    except CertificateError:
        return
    assert name.uri == text


def test_longest_parts_fit():
    assert parse_uri(node_uri("f" * 128, "s" * 128, "c" * 128)).name == "c" * 128


def test_a_long_wrong_name_is_cut_in_the_message():
    with pytest.raises(CertificateError) as caught:
        parse_uri("x" * 100_000)
    assert len(str(caught.value)) < 300
