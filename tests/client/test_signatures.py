"""Unsigned and forged requests at a client with an identity: refused before its policy, its records and its store are touched."""

from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography import x509
from flwr.app import Context, RecordDict

from client.app import app
from fedsec.errors import CertificateError, DecodeError, FedsecError, SignatureError
from fedsec.flower import compat, records
from fedsec.flower.secure_records import STAGES, make_stage_request, stage_type
from fedsec.flower.signed import SIGNATURE_RECORD, ServerIdentity, sign_request
from fedsec.identity.ca import CertificateAuthority
from fedsec.identity.crl_file import CrlFile
from fedsec.identity.folder import create_identity
from fedsec.identity.revocation import CRL_LIFETIME, Revocation, RevokedError, make_crl
from fedsec.plan.load import load_plan
from fedsec.signing import Signer
from fedsec.vectors import arrays_digest

PLAN = load_plan(overrides=["robust.rule=mean", "attack.name=none", "secagg.enabled=false", "privacy.noise_multiplier=60.0", "privacy.epsilon=1",
                            "training.steps=1", "training.batch_size=32", "federation.evaluate_clients=true"])  # fmt: skip
MODEL = {"bias": np.zeros(2, np.float32), "weight": np.zeros((2, 4), np.float32)}
SOURCE = """
import pathlib
import numpy as np
def load():
    pathlib.Path(__file__).with_name("read").touch()
    x = np.random.default_rng(0).random((400, 4)).astype(np.float32)
    return {"x": x, "y": np.arange(400) % 2, "x_test": x[:50], "y_test": np.arange(50) % 2, "num_classes": 2}
"""
RUN = 7
WITH_MODEL = {records.TRAIN, records.EVALUATE, records.PERSONALISE}
KINDS = [
    records.DESCRIBE,
    records.TRAIN,
    records.EVALUATE,
    records.PERSONALISE,
    "query.roster",
    *map(stage_type, STAGES),
    "query.blame",
    "query.blame_open",
]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A deployed client with an identity, its federation's server, and a fellow client."""
    monkeypatch.delenv("FEDSEC_SIMULATION", raising=False)
    now = datetime.now(UTC)
    authority = CertificateAuthority.create("hearts.example", now=now)
    (tmp_path / "signedrecords.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    from client.localdata import load_source

    load_source.cache_clear()

    def identity(kind, name):
        signer = Signer.generate()
        issued = (
            authority.issue_server(name, signer.public_key, now=now)
            if kind == "server"
            else authority.issue_node(name, signer.public_key, site="basel", now=now)
        )
        return ServerIdentity(signer=signer, certificate_der=issued.certificate_der, intermediate_der=authority.intermediate_der)

    own = identity("node", "client-1")
    create_identity(tmp_path / "identity", own.signer, own.certificate_der, own.intermediate_der, authority.root_der)
    settings = tmp_path / "settings.toml"
    text = (
        f'client_id = "client-1"\nhome = "{tmp_path / "store"}"\nsource = "signedrecords:load"\nbatch_size = 32\nidentity = "{tmp_path / "identity"}"\nserver = "main"\n'
        "[policy]\nepsilon_cap = 9.0\ndelta = 1e-3\nallow_evaluation = true\n"
    )
    settings.write_text(text)
    context = Context(run_id=RUN, node_id=1, node_config={"fedsec-settings": str(settings)}, state=RecordDict(), run_config={})
    with compat.task_identity(RUN):
        yield SimpleNamespace(authority=authority, path=tmp_path, context=context, settings=settings, server=identity("server", "main"), spare=identity("server", "spare"),
                              fellow=identity("node", "client-2"))  # fmt: skip


def request(kind, **changes):
    fields = {"run_id": "r", "server_round": 1, "plan_json": records.plan_to_canonical(PLAN), "noise_multiplier": 60.0, **changes}
    fields.setdefault("model_hash", arrays_digest(MODEL) if kind in WITH_MODEL else "")
    asked = records.RoundRequest(**fields)
    if kind.partition(".")[2] in ("", "describe", "personalise"):
        return records.make_request(
            asked, node_id=1, message_type=kind, arrays=records.arrays_to_record(MODEL) if kind in WITH_MODEL else None
        )
    return make_stage_request(asked, b"body", node_id=1, message_type=kind)


def sign(message, identity, run=RUN):
    message.content[SIGNATURE_RECORD] = sign_request(message, identity, flower_run_id=run, signed_at=datetime.now(UTC))
    return message


def ask(site, message):
    compat.assign_message_id(message, "m")
    return app(message=message, context=site.context)


def untouched(site):
    return not (site.path / "read").exists() and not (site.path / "store").exists() and not site.context.state


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_request_needs_the_servers_signature(site, kind):
    with pytest.raises(SignatureError, match="carries no signature"):
        ask(site, request(kind))
    with pytest.raises(CertificateError, match="server certificate"):
        ask(site, sign(request(kind), site.fellow))
    assert untouched(site)


def test_the_list_of_kinds_above_is_all_that_the_client_answers():
    assert {kind if "." in kind else f"{kind}.default" for kind in KINDS} == set(app._registered_funcs)


def test_a_signed_request_is_answered_and_costs_what_it_should(site):
    assert records.read_about(ask(site, sign(request(records.DESCRIBE), site.server)), sender="x", phase="p").client_id == "client-1"
    assert records.read_update(ask(site, sign(request(records.TRAIN), site.server)), sender="x")["weight"].shape == (2, 4)


def test_an_evaluation_forged_by_a_fellow_node_releases_nothing(site):
    """The client would answer this evaluation if the server asked: only the signature stands before it."""
    assert ask(site, sign(request(records.EVALUATE), site.server)).content["metrics"]["num_examples"] == 50
    forged = sign(request(records.EVALUATE), site.fellow)
    with pytest.raises(CertificateError):
        ask(site, forged)
    stolen = sign(request(records.DESCRIBE, model_hash=arrays_digest(MODEL)), site.server)
    forged.content[SIGNATURE_RECORD] = stolen.content[SIGNATURE_RECORD]
    with pytest.raises(SignatureError, match="evaluate request is not what the server signed"):
        ask(site, forged)


def test_a_request_captured_in_another_run_is_refused(site):
    with pytest.raises(SignatureError, match="another run"):
        ask(site, sign(request(records.TRAIN), site.server, run=RUN + 1))
    assert untouched(site)


def test_swapped_arrays_are_refused_and_nothing_is_spent(site):
    message = sign(request(records.TRAIN), site.server)
    message.content["model"] = records.arrays_to_record({**MODEL, "bias": np.ones(2, np.float32)})
    with pytest.raises(DecodeError, match="not the one whose hash"):
        ask(site, message)
    assert untouched(site)


def test_another_server_of_the_federation_is_not_the_one_that_the_site_chose(site):
    with pytest.raises(CertificateError, match="follows main"):
        ask(site, sign(request(records.TRAIN), site.spare))
    assert untouched(site)


def test_a_client_whose_key_is_encrypted_gets_the_passphrase_by_the_name_of_a_file(site, monkeypatch):
    folder, file = site.path / "identity", site.path / "passphrase"
    (folder / "key.pem").write_bytes(Signer.from_pem((folder / "key.pem").read_bytes()).to_pem(passphrase=b"open sesame"))
    from client.credentials import _deployed

    monkeypatch.delenv("FEDSEC_PASSPHRASE_FILE", raising=False)
    _deployed.cache_clear()
    with pytest.raises(FedsecError, match="its own log says why"):
        ask(site, sign(request(records.DESCRIBE), site.server))
    file.write_text("open sesame\n")
    file.chmod(0o600)
    monkeypatch.setenv("FEDSEC_PASSPHRASE_FILE", str(file))
    assert ask(site, sign(request(records.DESCRIBE), site.server)).has_content()
    _deployed.cache_clear()


def crl(site, number, *revoked, now=None):
    serials = [x509.load_der_x509_certificate(identity.certificate_der).serial_number for identity in revoked]
    now = now or datetime.now(UTC)
    return make_crl(site.authority, [Revocation(serial, now) for serial in serials], number=number, now=now)


def keep(site, der):
    """As the agent does."""
    CrlFile(path=site.path / "crl.der", floor_path=site.path / "crl-floor.json", intermediate_der=site.authority.intermediate_der,
            root_der=site.authority.root_der, federation="hearts.example").take(der, now=datetime.now(UTC))  # fmt: skip


def test_a_revoked_server_is_not_heard_any_more(site):
    """Its key was stolen. It signs, and it would withhold the list; the agent got it all the same."""
    keep(site, crl(site, 1))
    assert ask(site, sign(request(records.DESCRIBE), site.server)).has_content()
    keep(site, crl(site, 2, site.server))
    for kind in KINDS:
        with pytest.raises(RevokedError, match="was revoked"):
            ask(site, sign(request(kind), site.server))
    assert not (site.path / "store").exists()


def test_an_old_missing_or_ended_list_stops_the_client(site):
    """Whoever could put one of these in the list's place would bring a revoked server back."""
    before, after, forked = crl(site, 1), crl(site, 2, site.server), crl(site, 2)
    keep(site, after)
    for bad in (before, forked, b"", crl(site, 3, now=datetime.now(UTC) - CRL_LIFETIME)):
        (site.path / "crl.der").write_bytes(bad)
        with pytest.raises(CertificateError, match="revocation list"):
            ask(site, sign(request(records.TRAIN), site.server))
    (site.path / "crl.der").unlink()
    with pytest.raises(FedsecError, match="its own log says why"):
        ask(site, sign(request(records.TRAIN), site.server))
    assert untouched(site)


def test_a_list_that_the_settings_name_must_be_there(site):
    assert ask(site, sign(request(records.DESCRIBE), site.server)).has_content()  # set up without one: as before
    text = site.settings.read_text()
    site.settings.write_text(f'crl = "{site.path / "lists" / "crl.der"}"\n{text}')
    with pytest.raises(FedsecError, match="its own log says why"):
        ask(site, sign(request(records.DESCRIBE), site.server))
    (site.path / "lists").mkdir()
    (site.path / "lists" / "crl.der").write_bytes(crl(site, 1))
    assert ask(site, sign(request(records.DESCRIBE), site.server)).has_content()


def test_a_damaged_identity_stops_the_client_rather_than_the_check(site):
    (site.path / "identity" / "root.der").unlink()
    from client.credentials import _deployed

    _deployed.cache_clear()
    with pytest.raises(FedsecError, match="its own log says why"):
        ask(site, request(records.TRAIN))
    assert untouched(site)
