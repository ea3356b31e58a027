"""A live federation of four agents on loopback, made with fedsec's own commands. Gateway and ServerApp are killed in two rounds, a client is revoked in a later one.

The long form, with six agents and the comparison with the simulation, is ``python -m experiments.live_federation.run``; its ``--kill`` kills the other parts.
"""

import pytest

from experiments.live_federation.live import live_federation
from experiments.live_federation.stock import ROOT
from experiments.live_federation.story import Story, gone_in
from fedsec.clientstore.inspect import read_ledger

CHANGES = {
    "num_clients = 6": "num_clients = 4",
    "rounds = 6": "rounds = 4",
    "min_clients = 4": "min_clients = 3",
    "stage_timeout_s = 60.0": "stage_timeout_s = 40.0",
}
REVOKED = "client-0003"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """One run of four rounds, and what happened to it."""
    root = tmp_path_factory.mktemp("live")
    text = (ROOT / "examples" / "live.toml").read_text()
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    (root / "plan.toml").write_text(text)
    with live_federation(root / "all", 4, keep=True) as federation:
        story = Story(
            federation=federation, plan=str(root / "plan.toml"), kills={"gateway": 1, "serverapp": 2}, revoke_after=2, timeout_s=500
        )
        result = story.play()
        federation.wait("the revoked client hears of it", lambda: federation.status(REVOKED).get("state") == "unauthorised", timeout_s=60)
        yield story, result


def test_the_run_ends_with_every_sum_opened_and_the_plans_epsilon(played):
    _, result = played
    assert (result["rounds"], result["engine"], result["randomness"]) == (4, "deployment", "operating system")
    assert {cohort["opening"] for row in result["rows"] for cohort in row["secagg"]["cohorts"]} == {"held"}
    assert result["accuracy"] > 0.6
    assert 7.5 < result["epsilon"]["prv"] <= 8.0


def test_a_gateway_killed_in_a_round_is_survived_by_everybody(played):
    """At worst one message that was on its way is lost: the stage ends by its timeout, and the round goes on without that client, or is tried once more."""
    story, result = played
    assert any("killed the gateway" in text for _, text in story.told)
    assert result["rows"][0]["num_valid"] >= 3
    assert result["rows"][0]["secagg"]["attempts"] <= 2


def test_a_server_killed_in_a_round_is_noticed_and_the_run_goes_on_from_its_checkpoint_under_its_own_id(played):
    story, result = played
    assert any("killed the serverapp" in text for _, text in story.told)
    assert any("gone without a word" in text for _, text in story.told)
    assert story.resumes == 1
    assert [len(event["rows"]) for event in story.federation.events("begin")] == [0, 1]
    assert [row["server_round"] for row in result["rows"]] == [1, 2, 3, 4]
    assert result["run_id"] == story.run_id


def test_no_epsilon_is_forgotten_and_none_is_spent_twice(played):
    """Each client's own ledger has the rounds in which it trained, once each, the one that the crash cut off included.

    One client may have lost the first round's question with the gateway; the server's row says so, and it spent nothing in that round.
    """
    story, result = played
    late = 0
    for name in story.federation.names:
        rounds = [entry.server_round for entry in read_ledger(story.federation.client_home(name) / "store")]
        gone = gone_in(result).get(name, 5)
        first = min(rounds)
        assert rounds == list(range(first, max(rounds) + 1)), name
        late += first == 2
        assert first in (1, 2), name
        assert (gone - 2 if name == REVOKED else 4) <= max(rounds) < gone, name  # cut off in the round before, it may have trained or not
    assert late <= 4 - result["rows"][0]["num_valid"]


def test_the_revoked_client_is_gone_between_two_rounds_and_nobody_else(played):
    story, result = played
    assert set(gone_in(result)) == {REVOKED}
    assert gone_in(result)[REVOKED] in (3, 4)
    assert "was revoked" in result["rows"][3]["gone"][0]["reason"]
    assert (result["rows"][3]["num_selected"], result["rows"][3]["num_valid"]) == (3, 3)
    assert story.federation.status("client-0000")["state"] == "connected"


def test_the_result_folder_is_that_of_a_simulation_but_for_what_nobody_may_know(played):
    story, _ = played
    (folder,) = story.federation.server.glob("runs/*")
    files = {path.name for path in folder.iterdir()}
    assert {"plan.toml", "run.json", "result.json", "rounds.csv", "model.safetensors", "secagg.csv", "overview.png"} <= files
    assert not {"label_skew.png", "identities", "clients"} & files
