"""The doctor's pure parts: hostile and odd facts in, the right finding out; and the table in docs/doctor.md is the one in the code."""

import re
import sys
import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from doctor_world import FEDERATION, World, ask, faults
from hypothesis import given
from hypothesis import strategies as st

from fedsec.edge import edge_pb2
from fedsec.edge.doctor_certificates import Chain, Expected, examine_chain, examine_crl, examine_issuers, examine_service, examine_token
from fedsec.edge.doctor_findings import CATALOGUE, MAX_TEXT, Level, finding, printable
from fedsec.edge.doctor_host import (
    WANTED,
    FileFacts,
    judge_commands,
    judge_disk,
    judge_folders,
    judge_keys,
    judge_library,
    judge_processes,
    judge_proxies,
    judge_versions,
    read_proc_options,
    read_versions,
)
from fedsec.edge.doctor_judge import SessionView, judge_clock, judge_connection, judge_port, judge_server, judge_session, judge_tls
from fedsec.edge.doctor_network import PortFacts, SessionFacts, TlsFacts, parse_address
from fedsec.identity.names import Role

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2030, 5, 1, 12, tzinfo=UTC)


def codes(found):
    return [item.code for item in found]


def bad(found):
    return {item.code for item in found if item.level is not Level.OK}


@pytest.fixture(scope="module")
def world():
    return World()


def test_every_code_is_in_the_docs_with_its_level_and_nothing_else_is():
    rows = re.findall(
        r"^\| `([a-z-]+\.[a-z0-9-]+)` \| (fault|warning) \|", (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert dict(rows) == {code: str(level) for code, (level, _) in CATALOGUE.items()}
    assert len(rows) == len(CATALOGUE)


def test_every_code_is_used_somewhere():
    source = "".join(path.read_text() for path in (ROOT / "fedsec" / "edge").glob("doctor*.py") if path.name != "doctor_findings.py")
    dynamic = ("server-certificate.", "port.", "certificate.")
    assert [
        code
        for code in CATALOGUE
        if f'"{code}"' not in source and f'.{code.partition(".")[2]}"' not in source and not code.startswith(dynamic)
    ] == []


def test_every_mend_is_one_sentence_of_use():
    assert [code for code, (_, mend) in CATALOGUE.items() if not 20 < len(mend) < 200 or not mend.isprintable()] == []


@given(st.text())
def test_foreign_text_becomes_one_printable_line(text):
    line = printable(text)
    assert len(line) <= MAX_TEXT
    assert line.isprintable()


def test_versions_match_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[<>=\[]", item)[0]: item for item in project["dependencies"]}
    for name, (lowest, too_new) in WANTED.items():
        if name in wanted:
            assert f">={'.'.join(map(str, lowest))}" in wanted[name]
            assert (too_new is not None) == ("<" in wanted[name])
    assert bad(judge_versions(read_versions())) == set()


@pytest.mark.parametrize(
    ("version", "code"),
    [
        (None, "versions.missing"), ("1.40.9", "versions.outside"), ("1.43.0", "versions.outside"), ("2", "versions.outside"),
        ("", "versions.unknown"), ("latest", "versions.unknown"), ("1" * 80, "versions.unknown"), ("٣.١", "versions.unknown"),
    ],
)  # fmt: skip
def test_odd_versions(version, code):
    sound = dict.fromkeys(WANTED, "99.0") | {"flwr": "1.42.1"}
    assert codes(judge_versions(sound)) == ["versions.ok"]
    assert bad(judge_versions(sound | {"flwr": version})) == {code}


def test_the_library():
    assert judge_library(has_tls13=True) == []
    assert codes(judge_library(has_tls13=False)) == ["tls.old-library"]


def test_commands():
    assert codes(judge_commands({"flwr": True})) == ["commands.ok"]
    assert codes(judge_commands({"flwr": True, "flower-superlink": False})) == ["commands.missing"]


@pytest.mark.parametrize(
    ("environment", "seen"),
    [
        ({}, False),
        ({"HTTPS_PROXY": "http://p:1"}, True),
        ({"https_proxy": ""}, False),
        ({"grpc_proxy": "p"}, True),
        ({"https_proxy": "p", "no_proxy": "*"}, False),
        ({"https_proxy": "p", "NO_PROXY": "gateway.example"}, False),
        ({"https_proxy": "p", "no_proxy": ".example, other"}, False),
        ({"https_proxy": "p", "no_proxy": "way.example"}, True),
        ({"https_proxy": "p", "no_proxy": ","}, True),
        ({"https_proxy": "http://[bad"}, True),
        ({"https_proxy": "http://u:secret@p:99999999"}, True),
    ],
)
def test_proxies(environment, seen):
    found = judge_proxies(environment, "gateway.example")
    assert (codes(found) == ["proxy.set"]) == seen
    assert "secret" not in found[0].text


@pytest.mark.parametrize(("free", "code"), [(0, "disk.full"), (99 << 20, "disk.full"), (500 << 20, "disk.low"), (5 << 30, "disk.ok")])
def test_disk(free, code):
    folder = FileFacts(Path("/x"), exists=True, is_folder=True)
    assert codes(judge_disk(folder, free)) == [code]
    assert "disk.read-only" in codes(judge_disk(replace(folder, writable=False), free))


@pytest.mark.parametrize(
    ("mode", "code"), [(0o700, "ok"), (0o500, "ok"), (0o750, "readable"), (0o711, "readable"), (0o720, "writable"), (0o777, "writable")]
)
def test_folder_modes(mode, code):
    assert codes(judge_folders([FileFacts(Path("/x"), exists=True, mode=mode, is_folder=True)])) == [f"folder.{code}"]


def test_key_files():
    key = FileFacts(Path("/x/key.pem"), exists=True, mode=0o600)
    assert codes(judge_keys([key])) == ["key.ok"]
    assert codes(judge_keys([replace(key, exists=False), replace(key, is_link=True), replace(key, mode=0o604)])) == [
        "key.missing",
        "key.link",
        "key.readable",
    ]
    assert codes(judge_keys([key], root_key=Path("/x/root-key.pem"))) == ["key.root-here"]


@pytest.mark.parametrize("text", ["", ":1", "host", "host:", "host:0", "host:65536", "host:-1", "host:1x", "ho\nst:1", "host:١"])
def test_what_is_no_address(text):
    with pytest.raises(ValueError, match="host:port"):
        parse_address(text)


def test_addresses():
    assert str(parse_address("[::1]:9443")) == "[::1]:9443"
    assert parse_address("a.example:1").port == 1


@pytest.mark.parametrize("outcome", ["refused", "timeout", "reset", "unreachable"])
def test_ports(outcome):
    assert codes(judge_port("a:1", PortFacts(("10.0.0.1",), outcome))) == ["name.ok", f"port.{outcome}"]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (TlsFacts("done", "TLSv1.3", http2=True), {"tls.ok"}),
        (TlsFacts("done", "TLSv1.2", http2=True), {"tls.old-version"}),
        (TlsFacts("done", "", http2=False), {"tls.old-version", "tls.no-http2"}),
        (TlsFacts("version", detail="x"), {"tls.old-version"}),
        (TlsFacts("not-tls"), {"tls.not-tls"}),
        (TlsFacts("closed"), {"tls.closed"}),
        (TlsFacts("timeout"), {"tls.closed"}),
    ],
)
def test_tls_facts(facts, expected):
    assert set(codes(judge_tls(facts))) == expected


def test_a_newer_intermediate_is_no_fault_and_openssls_refusal_is_one(world):
    party = world.party(Role.SERVER, "main")
    renewed = world.ca.with_new_intermediate(now=world.now)
    chain = Chain(party.certificate_der, renewed.intermediate_der, party.root_der)
    facts = TlsFacts("done", "TLSv1.3", http2=True, certificate_der=party.certificate_der)
    expected = Expected(Role.SERVER, FEDERATION, "main")
    assert codes(judge_server(facts, chain, expected, now=world.now)) == ["server-certificate.ok"]
    refused = replace(facts, verify_message="permitted subtree violation")
    assert codes(judge_server(refused, chain, expected, now=world.now)) == ["server-certificate.unsound"]
    strange = Chain(party.certificate_der, world.other.intermediate_der, party.root_der)
    assert codes(judge_server(facts, strange, expected, now=world.now)) == ["server-certificate.wrong-ca"]
    assert codes(judge_server(replace(facts, verify_message=""), strange, expected, now=world.now)) == ["server-certificate.ok"]


def test_several_faults_are_all_named(world):
    party = world.party(Role.SERVER, "main", ca=world.other, when=world.now - timedelta(days=20))
    chain = Chain(party.certificate_der, world.ca.intermediate_der, world.ca.root_der)
    assert bad(examine_chain("certificate", chain, Expected(Role.NODE, "lungs.example"), now=world.now)) == {
        "certificate.wrong-ca", "certificate.expired", "certificate.wrong-usage", "certificate.wrong-role", "certificate.wrong-federation",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("hours", "code"), [(0, "ok"), (50, "ok"), (57, "expires-soon"), (71.9, "expires-soon"), (72.1, "expired"), (-0.2, "not-yet-valid")]
)
def test_time_of_our_own_certificate(world, hours, code):
    party = world.party()
    chain = Chain(party.certificate_der, party.intermediate_der, party.root_der)
    found = examine_chain("certificate", chain, Expected(Role.NODE), now=world.now + timedelta(hours=hours))
    assert codes(found) == [f"certificate.{code}"]


@given(st.binary(max_size=200))
def test_no_bytes_break_the_certificate_checks(data):
    for chain in (Chain(data, b"", b""), Chain(data, data, data)):
        assert bad(examine_chain("certificate", chain, Expected(Role.NODE), now=NOW)) == {"certificate.unreadable"}
    assert bad(examine_issuers(data, data, now=NOW)) == {"issuer.unsound"}
    assert bad(examine_crl(data, Chain(data, data, data), {}, now=NOW)) == {"revocation.unknown"}


@pytest.mark.parametrize(
    ("days", "code"), [(0, "issuer.ok"), (310, "issuer.expires-soon"), (340, "issuer.expired"), (-40, "issuer.not-yet-valid")]
)
def test_issuers(world, days, code):
    assert code in codes(examine_issuers(world.ca.intermediate_der, world.ca.root_der, now=world.now + timedelta(days=days)))


def test_a_list_of_another_ca_proves_nothing(world):
    chain = Chain(b"", world.other.intermediate_der, world.other.root_der)
    assert codes(examine_crl(world.crl(), chain, {"certificate": 1}, now=world.now)) == ["revocation.unknown"]


def test_a_server_on_the_list(world):
    party = world.party(Role.SERVER, "main")
    from cryptography import x509

    number = x509.load_der_x509_certificate(party.certificate_der).serial_number
    chain = Chain(b"", world.ca.intermediate_der, world.ca.root_der)
    assert codes(examine_crl(world.crl(party), chain, {"server-certificate": number}, now=world.now)) == ["server-certificate.revoked"]


@given(st.text(max_size=100))
def test_no_text_is_a_token(text):
    found, token = examine_token(text, role=Role.NODE, name=None, root_der=None, now=NOW)
    assert token is None
    assert codes(found) == ["token.unreadable"]


def test_a_service_is_known_by_all_of_its_hash():
    class Pinned:
        service_sha256 = bytes(32)
        address = "ca.example:1"

    assert examine_service(Pinned, b"").code == "token.other-service"


@pytest.mark.parametrize(
    ("seconds", "uncertainty", "code"),
    [
        (0, 0, "ok"),
        (29, 0, "ok"),
        (-31, 0, "drifts"),
        (31, 2, "ok"),
        (301, 0, "off"),
        (-301, 0, "off"),
        (301, 5, "drifts"),
        (10**9, 0, "off"),
    ],
)
def test_clock(seconds, uncertainty, code):
    found = judge_clock(NOW, NOW + timedelta(seconds=seconds), timedelta(seconds=uncertainty))
    assert codes(found) == [f"clock.{code}"]


@pytest.mark.parametrize(
    ("options", "code"),
    [("rw,relatime", "host.open-proc"), ("", "host.open-proc"), ("rw,hidepid=0", "host.open-proc"), ("rw,hidepid=22", "host.open-proc"),
     ("rw,hidepid=2", "host.ok"), ("rw,hidepid=invisible,gid=5", "host.ok")],
)  # fmt: skip
def test_a_proc_that_shows_tokens_is_named(options, code):
    assert codes(judge_processes(options)) == [code]


def test_the_options_of_proc_are_read(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text("none / overlay rw 0 0\nproc /proc proc rw,hidepid=2 0 0\n\nx\n")
    assert read_proc_options(mounts) == "rw,hidepid=2"
    assert read_proc_options(tmp_path / "none") == ""


def test_why_a_server_closed_the_connection():
    shown = TlsFacts("done", "TLSv1.3", showed_certificate=True, detail="closed without a word")
    assert codes(judge_connection(replace(shown, showed_certificate=False), [])) == ["connection.no-certificate"]
    assert codes(judge_connection(shown, [])) == ["certificate.refused"]
    assert codes(judge_connection(shown, [finding("certificate.expires-soon", "x")])) == ["certificate.refused"]
    assert codes(judge_connection(shown, [finding("certificate.expired", "x")])) == ["connection.refused"]
    assert codes(judge_connection(replace(shown, accepted=True), [])) == ["connection.ok"]
    assert codes(judge_connection(replace(shown, accepted=True, showed_certificate=False), [])) == ["session.failed"]


HOSTILE_REPLIES = {
    "empty": edge_pb2.HelloReply(),
    "long session": edge_pb2.HelloReply(session_id=bytes(17), server_time_ms=1),
    "time beyond": edge_pb2.HelloReply(session_id=bytes(16), server_time_ms=(1 << 64) - 1),
    "no certificate": edge_pb2.HelloReply(
        session_id=bytes(16), server_time_ms=1, server_share=bytes(32), server_certificate=b"\x30\x00", signature=bytes(64)
    ),
}


@pytest.mark.parametrize("reply", HOSTILE_REPLIES.values(), ids=HOSTILE_REPLIES)
def test_a_hostile_hello_proves_nothing_and_breaks_nothing(reply):
    view = SessionView(b"", 1, b"", Expected(Role.SERVER), b"")
    found = judge_session(
        SessionFacts("OK", reply=reply, request=edge_pb2.HelloRequest(client_nonce=bytes(32), client_share=bytes(32)), asked_at=NOW),
        view,
        now=NOW,
    )
    assert codes(found) == ["session.unproven", "clock.unknown"]


@pytest.mark.parametrize(
    ("status", "detail", "code"),
    [
        ("UNAUTHENTICATED", "revoked: gone", "revocation.revoked"),
        ("UNAUTHENTICATED", "certificate: wrong role\x1b[31m", "session.refused"),
        ("RESOURCE_EXHAUSTED", "rate: later", "session.busy"),
        ("UNAVAILABLE", "Socket closed", "session.failed"),
        ("UNIMPLEMENTED", "x" * 10_000, "session.failed"),
    ],
)
def test_refusals(status, detail, code):
    (item,) = judge_session(SessionFacts(status, detail), SessionView(b"", 1, b"", Expected(Role.SERVER), b""), now=NOW)
    assert item.code == code
    assert item.text.isprintable()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("agent.toml", "server = 5"),
        ("agent.toml", "\xff"),
        ("server.toml", "[gateway]\nlisten = 1"),
        ("ca.toml", "x = 1"),
        ("agent.toml", "= ="),
    ],
)
def test_unsound_settings(tmp_path, file, content):
    (tmp_path / file).write_text(content, encoding="latin-1")
    found, report = ask(tmp_path, quick=True)
    assert "settings.unsound" in faults(found)
    assert report.kind == {"agent.toml": "client", "server.toml": "server", "ca.toml": "ca"}[file]


def test_a_cas_home(tmp_path, world):
    from fedsec.edge.ca_host import CaHost
    from fedsec.edge.ca_settings import CaSettings

    CaHost.create(tmp_path / "ca", FEDERATION, CaSettings(), now=world.now)
    found, report = ask(tmp_path / "ca")
    assert faults(found) == {"key.root-here"}
    assert report.not_checked == ()
    (tmp_path / "ca" / "root-key.pem").unlink()
    (tmp_path / "ca" / "log-key.pem").chmod(0o644)
    assert faults(ask(tmp_path / "ca")[0]) == {"key.readable"}
