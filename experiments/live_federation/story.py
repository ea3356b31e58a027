"""One run on a live federation, with what may happen to it: a process killed, a client revoked, a resume; and what is checked at the end."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

from experiments.live_federation.live import LiveError, LiveFederation

PARTS = ("gateway", "superlink", "serverapp", "agent", "supernode")
AGENT_BACK_S = 5.0
"""A killed agent is started again after that long, as its systemd unit would."""


@dataclass(kw_only=True)
class Story:
    """What is to happen.

    Attributes:
        federation: up.
        plan: path.
        kills: part → round in which it is killed with SIGKILL.
        revoke_after: client revoked after that round; 0: none.
        timeout_s: for all of it.
        quiet: print nothing.
        told: what happened, with seconds since the run was submitted.
        resumes: how often the run had to be resumed.
    """

    federation: LiveFederation
    plan: str
    kills: dict[str, int] = field(default_factory=dict)
    revoke_after: int = 0
    timeout_s: float = 900.0
    quiet: bool = False
    told: list[tuple[float, str]] = field(default_factory=list)
    resumes: int = 0

    def play(self) -> dict[str, Any]:
        """Submit, follow, let things happen, resume where the run failed; the result as ``fedsec run --json`` gives it.

        Raises:
            LiveError: the run failed twice, or took too long.
        """
        self._started = time.monotonic()
        self._to_kill, self._to_revoke = dict(self.kills), bool(self.revoke_after)
        code, out, err = self._follow(self.plan, "--follow", "--json")
        if code:
            self.say(f"the run ended with {code}: {err.strip().splitlines()[-1] if err.strip() else 'no word'}")
            self.federation.wait("the SuperLink again", self._server_is_back, timeout_s=90)
            self.resumes += 1
            code, out, err = self._follow("--resume", self.run_id, "--follow", "--json")
        if code:
            raise LiveError(f"the run failed: {err}")
        self.say("finished")
        result: dict[str, Any] = json.loads(out)
        return result

    @property
    def run_id(self) -> str:
        """Of the one run in this federation."""
        (marker,) = self.federation.server.glob("runs/*/run.json")
        return str(json.loads(marker.read_text())["run_id"])

    def say(self, text: str) -> None:
        """Keep what happened."""
        self.told.append((round(time.monotonic() - self._started, 1), text))
        if not self.quiet:
            print(f"{self.told[-1][0]:7.1f} s  {text}", flush=True)

    def _follow(self, *arguments: str) -> tuple[int, str, str]:
        process = self.federation.run(*arguments)
        try:
            while process.poll() is None:
                if time.monotonic() - self._started > self.timeout_s:
                    raise LiveError(f"the run takes longer than {self.timeout_s:.0f} s")
                self._let_happen()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.3)
            out, err = process.communicate()
            return process.returncode, out, err
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def _let_happen(self) -> None:
        done = len({event["row"]["server_round"] for event in self.federation.events("round")})
        for part, number in list(self._to_kill.items()):
            if done == number - 1 and self._is_in_round():
                del self._to_kill[part]
                self._kill(part)
        if self._to_revoke and done >= self.revoke_after:
            self._to_revoke = False
            self.federation.revoke(self.federation.names[-1])
            self.say(f"revoked {self.federation.names[-1]} after round {done}")

    def _kill(self, part: str) -> None:
        self.say(f"killed the {part}, pid {self.federation.kill(part)}")
        if part == "agent":
            time.sleep(AGENT_BACK_S)
            name = self.federation.names[-1]
            self.federation.processes.end(name)
            self.federation.start_client(name)
            self.say(f"started the agent of {name} again")

    def _is_in_round(self) -> bool:
        """Whether the first updates of a round that is not over have come: killed between two rounds, a part would hardly be missed."""
        return self.federation.newest_event() == "answers"

    def _server_is_back(self) -> bool:
        with contextlib.suppress(LiveError, OSError):
            return bool(self.federation.json("server", "status", "--home", str(self.federation.server)))
        return False


def gone_in(result: dict[str, Any]) -> dict[str, int]:
    """Client id → first round in which it was gone."""
    found: dict[str, int] = {}
    for row in result["rows"]:
        for entry in row.get("gone", []):
            found.setdefault(entry["client_id"], row["server_round"])
    return found


def table_of(result: dict[str, Any]) -> str:
    """The rounds as lines."""
    lines = ["round  accuracy  epsilon  clients  missing  opened  seconds  gone"]
    for row in result["rows"]:
        opened = "yes" if all(cohort["opening"] == "held" for cohort in row["secagg"]["cohorts"]) else "no"
        gone = ", ".join(entry["client_id"] for entry in row.get("gone", []))
        lines.append(
            f"{row['server_round']:5d}  {row['accuracy']:8.3f}  {row['epsilon_prv']:7.2f}  {row['num_valid']:3d}/{row['num_selected']:<3d}"
            f"  {row['num_dropped']:7d}  {opened:>6}  {row['seconds']:7.1f}  {gone}"
        )
    return "\n".join(lines)
