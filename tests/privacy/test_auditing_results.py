"""What an audit may say: verdicts follow from numbers, files are read strictly, and a refuted claim is loud."""

import json
import math
from dataclasses import replace

import pytest

from fedsec.errors import AuditError, DecodeError, FedsecError, PrivacyClaimRefuted
from fedsec.privacy.auditing.results import AuditReport, AuditResult, Estimate, Membership, PrivacyPoint

SHARE = Estimate(value=0.5, low=0.4, high=0.6)
MEMBERSHIP = Membership(auc=SHARE, tpr_at_1=SHARE, tpr_at_01=SHARE, roc=((0.0, 0.0), (0.5, 0.7), (1.0, 1.0)))
RESULT = AuditResult(
    kind="one-run",
    arm="plan",
    unit="example",
    adversary="updates",
    seed=1,
    num_canaries=1000,
    num_guesses=100,
    num_correct=80,
    claimed=PrivacyPoint(epsilon=2.0, delta=1e-3),
    audited=PrivacyPoint(epsilon=3.0, delta=1e-5),
    confidence=0.95,
    lower_bound=0.9,
    perfect_bound=3.5,
    gaussian_estimate=2.8,
    membership=MEMBERSHIP,
)
CONTROL = replace(RESULT, arm="no-noise", audited=PrivacyPoint(epsilon=1.0, delta=1e-5), lower_bound=3.4)
REPORT = AuditReport(plan_digest="ab", seed=1, results=(RESULT,), controls=(CONTROL,), notes=("a note",), duration_s=1.5)


def test_a_report_survives_json():
    text = json.dumps(REPORT.to_json(), allow_nan=False)
    assert AuditReport.from_json(json.loads(text)) == REPORT


def test_what_was_not_refuted_passes_and_is_never_called_confirmed():
    REPORT.check()
    assert not RESULT.refuted
    assert not RESULT.no_power
    assert RESULT.sentence().startswith("not refuted: epsilon is at least 0.90")
    assert "confirm" not in RESULT.sentence()


def test_a_bound_above_the_claim_is_loud():
    false = replace(RESULT, lower_bound=3.2)
    assert false.refuted
    with pytest.raises(PrivacyClaimRefuted, match=r"epsilon is at least 3.2 at delta=1e-05, 3 was claimed") as caught:
        replace(REPORT, results=(RESULT, false)).check()
    assert (caught.value.code, caught.value.exit_code) == ("privacy-refuted", 4)
    assert isinstance(caught.value, FedsecError)


def test_a_control_that_was_missed_makes_the_whole_audit_blind_even_if_the_plan_passes():
    missed = replace(CONTROL, lower_bound=0.8)
    with pytest.raises(AuditError, match=r"blind.*'no-noise'") as caught:
        replace(REPORT, controls=(missed,)).check()
    assert not isinstance(caught.value, PrivacyClaimRefuted)


def test_no_power_is_said_where_not_even_a_perfect_guesser_could_refute():
    weak = replace(RESULT, audited=PrivacyPoint(epsilon=8.0, delta=1e-5))
    assert weak.no_power
    assert weak.sentence().startswith("no power")
    unclaimed = replace(RESULT, audited=PrivacyPoint(epsilon=math.inf, delta=1e-5))
    assert not unclaimed.no_power
    assert not unclaimed.refuted
    assert unclaimed.sentence().startswith("nothing is claimed")
    assert AuditResult.from_json(json.loads(json.dumps(unclaimed.to_json(), allow_nan=False))) == unclaimed


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("refuted", True),
        ("no_power", True),
        ("refuted", None),
        ("lower_bound", 3.2),
        ("lower_bound", -1.0),
        ("lower_bound", 4.0),
        ("lower_bound", "nan"),
        ("num_correct", 101),
        ("num_guesses", 1001),
        ("num_correct", 3.0),
        ("kind", "magic"),
        ("arm", "hope"),
        ("adversary", "god"),
        ("unit", "planet"),
        ("confidence", 1.0),
        ("claimed", {"epsilon": -1.0, "delta": 1e-5}),
        ("audited", {"epsilon": 1.0, "delta": 1.0}),
        ("audited", {"epsilon": "nan", "delta": 1e-5}),
        ("membership", None),
        ("surprise", 1),
    ],
)
def test_an_edited_file_is_refused(key, value):
    content = json.loads(json.dumps(RESULT.to_json()))
    content[key] = value
    with pytest.raises(DecodeError):
        AuditResult.from_json(content)


def test_other_edited_reports_are_refused():
    content = REPORT.to_json()
    for edit in ({"format": "x"}, {"refuted": True}, {"controls_caught": False}, {"results": [CONTROL.to_json()]}, {"seed": "1"}):
        with pytest.raises(DecodeError):
            AuditReport.from_json({**content, **edit})
    with pytest.raises(DecodeError):
        AuditReport.from_json([])


@pytest.mark.parametrize("numbers", [(0.5, 0.6, 0.7), (1.2, 0.5, 1.3), (math.nan, 0.0, 1.0), (0.5, 0.4, math.nan)])
def test_shares_lie_in_their_interval_and_between_0_and_1(numbers):
    value, low, high = numbers
    if (value, low, high) == (0.5, 0.6, 0.7):
        Estimate(value=value, low=low, high=high)  # a bootstrap interval may miss the point; that is no contradiction
        return
    with pytest.raises(ValueError):
        Estimate(value=value, low=low, high=high)
