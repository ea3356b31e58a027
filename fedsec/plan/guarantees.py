"""What a plan protects, against whom, and under which assumptions: in words that a reader can hold against the code.

1. Nothing is claimed that the plan does not do: without secure aggregation the server sees each client's update, and the sentence says so.
2. What a plan releases beside the model (client sizes, test results in clear, a seed that anyone may know) is said as plainly.
"""

from __future__ import annotations

from typing import Any

from fedsec.plan.model import Plan
from fedsec.plan.robust import UNDEFENDED, max_suspects, rule_of
from fedsec.plan.secure import cohort_numbers, hiding_statement


def guarantee_sentence(plan: Plan) -> str:
    """One sentence: unit, epsilon, delta, relation, adversary, assumption."""
    if not plan.is_private:
        seen = "which sees sums over cohorts, and a sketch of each update" if plan.secagg.enabled else "which sees every update in clear"
        return f"No differential privacy: the model and each client's update may reveal single records, to the server above all, {seen}."
    privacy = plan.privacy
    bound = "fixed by the plan" if privacy.noise_multiplier is not None else "calibrated to it"
    return (
        f"Each record of each client is protected with ({privacy.epsilon:g}, {privacy.delta:g})-differential privacy for the whole run "
        f"(add/remove one record; DP-SGD at the client, noise {bound}), against the server, the other clients and every reader of the model; "
        "it holds per client, and for a person only where that person's records lie with one client."
    )


def notes(plan: Plan) -> tuple[str, ...]:
    """What else a careful reader must know, one sentence each."""
    lines = list(secagg_notes(plan)) if plan.secagg.enabled else []
    lines += robust_notes(plan)
    if plan.is_private:
        if not plan.secagg.enabled:
            lines.append("The server sees each client's update in clear (no secure aggregation); the noise above covers that view.")
        lines.append("In a simulation, noise and sampling come from the plan's seed: whoever knows the seed can remove them.")
    if plan.training.batch_size == "per-client":
        lines.append(
            'batch_size = "per-client" declares a number close to each client\'s record count: the counts are taken as public, outside epsilon.'
        )
    elif plan.training.batch_size == "uniform":
        lines.append(
            "The declared batch size is the sample rate times the mean client size of the simulation; a deployment needs a number."
        )
    if plan.federation.evaluate_clients:
        lines.append(
            "Clients report their own test result in clear: a release outside epsilon, for simulations or by each client's consent."
        )
    if plan.federation.fraction < 1:
        lines.append("The server's choice of clients is not counted as amplification: the server knows whom it asks.")
    if plan.model.personal:
        fitted = (
            "fitted locally after the last release" if plan.model.personal_fit == "after-release" else "trained inside the noised gradient"
        )
        lines.append(f"Personal parameters ({', '.join(plan.model.personal)}) never leave the client; they are {fitted}.")
    if plan.training.tail_average > 1:
        lines.append(
            f"The released model is the mean of the last {plan.training.tail_average} rounds' models: post-processing, no extra epsilon."
        )
    return tuple(lines)


def robust_notes(plan: Plan) -> tuple[str, ...]:
    """Which rule rejects outliers, how many at most, and what it does not promise."""
    rule, count = rule_of(plan), plan.federation.num_clients
    lines = []
    if rule == UNDEFENDED:
        few = f" ({count} clients are too few to tell outliers apart)" if plan.robust.rule == "auto" else ""
        lines.append(f"No outlier is rejected{few}: one client that sends a poisoned update of usual size moves the model.")
    else:
        seen = "sketches" if plan.secagg.enabled else "updates in clear"
        lines.append(
            f'Outliers: rule "{rule}" on {seen} rejects at most {max_suspects(plan, count)} of {count} clients a round; with more suspects the round '
            "is given up. What looks like an honest update in every measure of the rule is not found; its influence is that of an honest one."
        )
    if rule == "fltrust":
        lines.append(
            f"The server's own {plan.robust.root_examples} trusted records steer every round without noise: no epsilon covers them. In a simulation they are "
            "drawn from the clients' records."
        )
    if plan.attack.name != "none":
        attacking = max(1, round(plan.attack.fraction * count))
        lines.append(
            f'Simulated attack "{plan.attack.name}" by {attacking} certified, colluding clients; a deployed client refuses this plan.'
        )
        if plan.secagg.enabled and attacking > plan.secagg.num_corrupt:
            lines.append(
                f"The {attacking} attackers are more than secagg.num_corrupt = {plan.secagg.num_corrupt}: what secure aggregation claims does not cover them."
            )
    return tuple(lines)


def secagg_notes(plan: Plan) -> tuple[str, ...]:
    """What the server learns under secure aggregation, what is survived, and what a sketch is worth."""
    secagg, lines = plan.secagg, []
    numbers = cohort_numbers(secagg, plan.federation.num_clients)
    cohorts = sum(item.count for item in numbers)
    side = "the sum of the accepted updates" if cohorts == 1 else f"the sum of the accepted updates of each of {cohorts} cohorts"
    lines.append(
        f"Secure aggregation: the server learns {side}, {secagg.sketch_rows} numbers about each update (a sketch), each declared batch size, "
        "and who answered; not one client's update."
    )
    for item in numbers:
        limits, least = item.limits, item.limits.minimum_accepted - item.limits.num_corrupt
        with_bad = max(item.drops_with_bad_dealers, 0)
        lines.append(
            f"{item.count} cohort{'s' if item.count > 1 else ''} of {limits.num_clients}: holds against a server helped by "
            f"{limits.num_corrupt} corrupt member{'s' if limits.num_corrupt > 1 else ''} (t = {limits.threshold}); a sum holds at least {least} honest "
            f"clients; {limits.tolerated_dropouts} drop-outs are survived, {with_bad} if the corrupt ones also deal bad shares."
        )
    if cohorts > 1:
        lines.append(
            f"{secagg.num_corrupt} of {plan.federation.num_clients} clients corrupt before the cohorts are drawn put more than that into a cohort with "
            "probability under 2^-40; against one who corrupts afterwards the count holds federation-wide only."
        )
    factor, bits = hiding_statement(plan)
    lines.append(
        f"Against an honest server, colluders can add {factor:g} times the norm that their sketches show with probability under 2^{bits:.0f} a round: "
        "a bound in L2, one coordinate may carry it all."
    )
    lines.append(
        "A sketch is post-processing of the noised update: the epsilon above covers it. What clients spent in other runs is in their own ledgers, "
        "which hold their caps; the server is not told, so the epsilon of a result is that of this run."
        if plan.is_private
        else "Without differential privacy, sketches do not hide an update from a server that chooses the model."
    )
    lines.append(
        "In a simulation a throw-away CA in the run's folder certifies everybody: signatures and chains are real, identities are not."
    )
    return tuple(lines)


def secagg_facts(plan: Plan) -> dict[str, Any] | None:
    """The numbers behind :func:`secagg_notes`, for scripts; None without secure aggregation."""
    if not plan.secagg.enabled:
        return None
    factor, bits = hiding_statement(plan)
    cohorts = [
        {
            "count": item.count,
            "num_clients": item.limits.num_clients,
            "num_corrupt": item.limits.num_corrupt,
            "threshold": item.limits.threshold,
            "minimum_accepted": item.limits.minimum_accepted,
            "tolerated_dropouts": item.limits.tolerated_dropouts,
            "tolerated_dropouts_bad_dealers": max(item.drops_with_bad_dealers, 0),
        }
        for item in cohort_numbers(plan.secagg, plan.federation.num_clients)
    ]
    return {"cohorts": cohorts, "sketch_rows": plan.secagg.sketch_rows, "hiding_factor": factor, "log2_hiding": bits}


def delta_warning(plan: Plan, smallest_client: int) -> str | None:
    """A warning where delta is no smaller than one over the smallest client's record count; None otherwise.

    With delta >= 1/n a mechanism may publish one whole record now and then and still keep its promise.
    """
    if not plan.is_private or smallest_client < 1 or plan.privacy.delta * smallest_client < 1:
        return None
    return (
        f"delta = {plan.privacy.delta:g} is not below 1/{smallest_client}, one over the smallest client's record count: "
        "such a delta allows a mechanism that publishes a whole record now and then"
    )
