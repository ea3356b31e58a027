"""A node knows who it is from its own settings, or plays a partition, or refuses."""

import pytest

from client.settings import DeployedClient, SimulatedClient, identify, read_settings
from fedsec.errors import ConfigError

GOOD = """
client_id = "hospital-a"
home = "/var/lib/fedsec"
source = "hospital.data:load"
batch_size = 32
[policy]
epsilon_cap = 8.0
delta = 1e-5
"""


def test_a_deployed_client_reads_its_own_settings(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text(GOOD)
    client = identify({"fedsec-settings": str(path), "partition-id": 0, "num-partitions": 2})
    assert isinstance(client, DeployedClient)
    assert (client.client_id, client.batch_size, client.policy.epsilon_cap) == ("hospital-a", 32, 8.0)
    assert not client.policy.allow_unprotected


def test_a_partition_makes_a_simulated_client_with_a_stable_name(monkeypatch):
    monkeypatch.setenv("FEDSEC_SIMULATION", "1")
    assert identify({"partition-id": 3, "num-partitions": 20}) == SimulatedClient(partition=3, num_partitions=20)
    assert SimulatedClient(partition=3, num_partitions=20).client_id == "client-0003"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"partition-id": 0},
        {"partition-id": 5, "num-partitions": 5},
        {"partition-id": -1, "num-partitions": 5},
        {"partition-id": "0", "num-partitions": 5},
    ],
)
def test_a_node_that_knows_neither_refuses(config, monkeypatch):
    monkeypatch.setenv("FEDSEC_SIMULATION", "1")
    with pytest.raises(ConfigError, match="settings"):
        identify(config)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('client_id = "hospital-a"', ""),
        ('client_id = "hospital-a"', 'client_id = ""'),
        ('client_id = "hospital-a"', 'client_id = "a\\u0007"'),
        ("batch_size = 32", "batch_size = 0"),
        ("batch_size = 32", 'batch_size = "32"'),
        ("batch_size = 32", "seed = 1"),
        ("batch_size = 32", 'crl = "/srv/crl.der"'),
        ("batch_size = 32", 'identity = "/srv/identity"\ncrl = "crl.der"'),
        ("batch_size = 32", 'identity = "/srv/identity"\ncrl = 7'),
        ("delta = 1e-5", ""),
        ("delta = 1e-5", 'delta = "small"'),
        ("delta = 1e-5", "delta = 1e-5\nseed = 3"),
        ("epsilon_cap = 8.0", "epsilon_cap = inf"),
        ("[policy]", "[politics]"),
        ("[policy]", "[policy"),
    ],
)
def test_unsound_settings_are_refused(tmp_path, old, new):
    path = tmp_path / "settings.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError):
        read_settings(path)


@pytest.mark.parametrize("words", ["", 'identity = "/srv/identity"\n'])
def test_a_client_of_an_agent_without_a_revocation_list_obeys_nobody(tmp_path, monkeypatch, words):
    """Without ``crl`` a revoked server was heard, as long as no list lay beside the identity."""
    path = tmp_path / "settings.toml"
    path.write_text(words + GOOD)
    assert read_settings(path).crl is None
    monkeypatch.setenv("FEDSEC_AGENT", "1")
    with pytest.raises(ConfigError, match="revocation list"):
        read_settings(path)
    path.write_text('identity = "/srv/identity"\ncrl = "/srv/crl.der"\n' + GOOD)
    assert str(read_settings(path).crl) == "/srv/crl.der"


def test_a_missing_settings_file_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="absent"):
        read_settings(tmp_path / "absent.toml")


def test_a_node_with_a_partition_outside_a_simulation_obeys_no_server(monkeypatch):
    monkeypatch.delenv("FEDSEC_SIMULATION", raising=False)
    with pytest.raises(ConfigError, match="not part of a simulation"):
        identify({"partition-id": 0, "num-partitions": 5})
