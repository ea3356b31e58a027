"""What BLAME costs the server, after a round in which one member lied in its sketch.

Members' edge values are made up: along a chain of the accepted members, so that both ends of every edge agree and every honest equation
holds, as it does with true values. Those would take a minute of the members' time to make, and the server's work does not depend on them:
every signature, equation and piece of evidence is checked as ever.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from experiments.bench.secagg_cohort import CohortRun
from fedsec.secagg.blame import BlameServer
from fedsec.secagg.checks import sign_statement
from fedsec.secagg.evidence_record import EvidenceKind
from fedsec.secagg.masking import apply_masks, self_mask_key
from fedsec.secagg.messages import BlameValues, EdgeValue
from fedsec.secagg.opening import opened_edges
from fedsec.secagg.sketch import SketchMatrix

Row = npt.NDArray[np.uint32]


def chained_values(run: CohortRun) -> dict[int, Row]:
    """The value of the edge from each accepted member to the next, such that ``s = R·w - Σ ±v`` holds for all but the liar."""
    server, config, opened = run.server, run.config, run.secrets
    assert opened is not None
    edges = opened_edges(server, opened)
    vectors = []
    for member in server.accepted:
        vector = server.inputs[member].vector.copy()
        own = {peer: key for (end, peer), key in edges.items() if end == member}
        apply_masks(
            vector,
            added=[key for peer, key in own.items() if member > peer],
            subtracted=[self_mask_key(opened.seeds[member], server.context), *(key for peer, key in own.items() if member < peer)],
        )
        vectors.append(vector)
    matrix = SketchMatrix(seed=server.matrix_seed, num_rows=config.num_rows, dimension=config.dimension)
    true = {member: run.server.sketches[member].sketch.astype(np.uint32) for member in server.accepted}
    if run.liar is not None:
        true[run.liar] = true[run.liar].copy()
        true[run.liar][0] -= np.uint32(1)
    values, previous = {}, np.zeros(config.num_rows, dtype=np.uint32)
    for member, product in zip(server.accepted, matrix.ring_product_many(vectors), strict=True):
        previous = product - true[member] + previous
        values[member] = previous
    if previous.any():
        raise SystemExit("the made-up values do not close: the round is not what it should be")
    return values


def answers(run: CohortRun) -> dict[int, bytes]:
    """A signed answer of each accepted member."""
    server, chain = run.server, chained_values(run)
    nothing, following = np.zeros(run.config.num_rows, dtype=np.uint32), dict(zip(server.accepted, server.accepted[1:], strict=False))
    made = {}
    for member in server.accepted:
        edges = []
        for peer in server.accepted:
            if peer == member:
                continue
            low, high = min(member, peer), max(member, peer)
            value = chain[low] if following.get(low) == high else nothing
            edges.append(EdgeValue(peer=peer, values=value.astype("<u4").tobytes()))
        statement = BlameValues(context=server.context, sender=member, view=server.view, agreement=server.agreement, edges=tuple(edges))
        made[member] = sign_statement(statement, run.signers[member])
    return made


def blame_server_seconds(run: CohortRun) -> float:
    """CPU seconds from the first answer to the outcome, which must name the liar and nobody else."""
    assert run.secrets is not None
    said = answers(run)
    started = time.process_time()
    blame = BlameServer(server=run.server, secrets=run.secrets)
    blame.requests()
    for member, answer in said.items():
        blame.receive(member, answer)
    blame.close_values()
    outcome = blame.outcome()
    spent = time.process_time() - started
    if [(named.index, named.kind) for named in outcome.named] != [(run.liar, EvidenceKind.SKETCH)]:
        raise SystemExit(f"BLAME named {outcome.named}")
    return spent
