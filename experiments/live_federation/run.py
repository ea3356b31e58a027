"""A whole federation on this machine, every part a process of its own on loopback, made with fedsec's own commands: ``python -m experiments.live_federation.run``.

CA, server host (SuperLink, SuperExec, gateway) and six agents (SuperNode, SuperExec, fork server each) come up; clients enrol with one-time tokens; an
administrator approves the code; ``examples/live.toml`` runs; one client is revoked between rounds and is gone from then on. The same plan is simulated, and the
two accuracies are compared: the noise differs (the operating system's here, the plan's seed there), so they agree up to its spread.

``--kill PART`` kills the gateway, the SuperLink, the ServerApp's process, an agent or a SuperNode with SIGKILL in the second round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.live_federation.live import live_federation
from experiments.live_federation.stock import ROOT, clean_environment
from experiments.live_federation.story import PARTS, Story, gone_in, table_of

HERE = Path(__file__).parent
MOST_APART = 0.06
"""Accuracies further apart are no agreement: twice the spread that fresh noise gives."""


def simulate(plan: Path, out: Path) -> dict[str, Any]:
    """The same plan on the local engine."""
    command = [sys.executable, "-m", "fedsec", "simulate", str(plan), "--out", str(out), "--json", "-q"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=clean_environment(), cwd=ROOT)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def facts_of(story: Story, live: dict[str, Any], simulated: dict[str, Any]) -> dict[str, Any]:
    """What goes into ``results.json``."""
    return {
        "plan_digest": live["plan_digest"],
        "machine": {"cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()},
        "versions": live["versions"],
        "set_up_s": story.federation.seconds,
        "clients": len(story.federation.names),
        "rounds": live["rounds"],
        "accuracy": {"live": live["accuracy"], "simulated": simulated["accuracy"], "apart": abs(live["accuracy"] - simulated["accuracy"])},
        "epsilon": {"live": live["epsilon"]["prv"], "simulated": simulated["epsilon"]["prv"]},
        "randomness": live["randomness"],
        "seconds_a_round": [round(row["seconds"], 1) for row in live["rows"]],
        "stage_ms": live["rows"][0]["secagg"]["stage_ms"],
        "killed": story.kills,
        "resumes": story.resumes,
        "gone": gone_in(live),
        "valid": [f"{row['num_valid']}/{row['num_selected']}" for row in live["rows"]],
        "story": [list(entry) for entry in story.told],
    }


def faults_of(facts: dict[str, Any], revoked: str) -> list[str]:
    """What is not as it should be."""
    checks = {
        "the accuracies agree": facts["accuracy"]["apart"] <= MOST_APART,
        "epsilon is that of the simulation": abs(facts["epsilon"]["live"] - facts["epsilon"]["simulated"]) < 1e-9,
        "the revoked client is gone": not revoked or revoked in facts["gone"],
        "nobody else is gone": set(facts["gone"]) <= {revoked},
        "the noise is the operating system's": facts["randomness"] == "operating system",
    }
    return [what for what, holds in checks.items() if not holds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=ROOT / "examples" / "live.toml")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--kill", choices=PARTS, default="")
    parser.add_argument("--no-revoke", action="store_true")
    parser.add_argument("--folder", type=Path, default=None, help="kept; default: a temporary one, removed")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    given = parser.parse_args()
    root = given.folder if given.folder is not None else Path(tempfile.mkdtemp(prefix="fedsec-live-")) / "all"
    try:
        simulated = simulate(given.plan, root.parent / "simulation")
        print(f"simulated: accuracy {simulated['accuracy']:.3f}", flush=True)
        with live_federation(root, given.clients, keep=given.folder is not None) as federation:
            print("up: " + ", ".join(f"{what} {seconds} s" for what, seconds in federation.seconds.items()), flush=True)
            story = Story(
                federation=federation,
                plan=str(given.plan),
                kills={given.kill: 2} if given.kill else {},
                revoke_after=0 if given.no_revoke else 3,
            )
            live = story.play()
            revoked = "" if given.no_revoke else federation.names[-1]
            facts = facts_of(story, live, simulated)
            if revoked:
                facts["revoked_agent_says"] = federation.status(revoked).get("state", "")
    finally:
        if given.folder is None:
            shutil.rmtree(root.parent, ignore_errors=True)
    print(table_of(live))
    print(f"accuracy: live {facts['accuracy']['live']:.3f}, simulated {facts['accuracy']['simulated']:.3f}")
    given.out.write_text(json.dumps(facts, indent=2) + "\n")
    for fault in (faults := faults_of(facts, revoked)):
        print(f"NOT AS IT SHOULD BE: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
