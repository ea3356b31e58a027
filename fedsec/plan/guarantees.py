"""What a plan protects, against whom, and under which assumptions: in words that a reader can hold against the code.

1. Nothing is claimed that this version does not do: without secure aggregation the server sees each client's update, and says so.
2. What a plan releases beside the model (client sizes, test results in clear, a seed that anyone may know) is said as plainly.
"""

from __future__ import annotations

from fedsec.plan.model import Plan


def guarantee_sentence(plan: Plan) -> str:
    """One sentence: unit, epsilon, delta, relation, adversary, assumption."""
    if not plan.is_private:
        return (
            "No differential privacy: the model and each client's update may reveal single records, "
            "to the server above all, which sees every update in clear."
        )
    privacy = plan.privacy
    bound = "fixed by the plan" if privacy.noise_multiplier is not None else "calibrated to it"
    return (
        f"Each record of each client is protected with ({privacy.epsilon:g}, {privacy.delta:g})-differential privacy for the whole run "
        f"(add/remove one record; DP-SGD at the client, noise {bound}), against the server, the other clients and every reader of the model; "
        "it holds per client, and for a person only where that person's records lie with one client."
    )


def notes(plan: Plan) -> tuple[str, ...]:
    """What else a careful reader must know, one sentence each."""
    lines = []
    if plan.is_private:
        lines.append(
            "The server sees each client's update in clear (no secure aggregation in this version); the noise above covers that view."
        )
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
