"""``Plan``: all sections together, and the rules that hold between them.

1. A plan that exists is sound: every rule below is checked when it is made, and it never changes afterwards.
2. What a plan claims and what the code runs come from this one object: sample rate, steps, clip norm and target epsilon are
   read from here by the client, the server and the accountant alike.
3. Equal plans have equal digests; the digest names the calibrated sigma, the run's checkpoint and the stored updates.
"""

from __future__ import annotations

import math
from typing import Any, Self

from pydantic import Field, model_validator

from fedsec.codec import digest_json
from fedsec.errors import ConfigError
from fedsec.plan.robust import UNDEFENDED, robust_rules, rule_of
from fedsec.plan.sections import (
    AttackSection,
    DataSection,
    FederationSection,
    ModelSection,
    PrivacySection,
    RobustSection,
    SecaggSection,
    Section,
    TrainingSection,
)
from fedsec.plan.secure import hiding_statement

PLAN_FORMAT = "fedsec/plan/v1"


class Plan(Section):
    """One federation, whole.

    Attributes:
        name: free text, for reports only; not part of the digest.
    """

    name: str = Field("unnamed", max_length=120, description="free text, for reports")
    federation: FederationSection = FederationSection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    training: TrainingSection = TrainingSection()
    privacy: PrivacySection = PrivacySection()
    secagg: SecaggSection = SecaggSection()
    robust: RobustSection = RobustSection()
    attack: AttackSection = AttackSection()

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for rule in (_federation_rules, _data_rules, _model_rules, _privacy_rules, _secagg_rules, robust_rules):
            rule(self)
        return self

    @property
    def total_steps(self) -> int:
        """Local steps of one client over the whole run: the T of the accountant."""
        return self.federation.rounds * self.training.steps

    @property
    def is_private(self) -> bool:
        """Whether records are protected by DP-SGD."""
        return self.privacy.unit == "example"

    @property
    def epsilon_cap(self) -> float:
        """What one client may spend over all runs on its data set; infinite without privacy."""
        if not self.is_private:
            return math.inf
        return self.privacy.epsilon_cap if self.privacy.epsilon_cap is not None else self.privacy.epsilon

    def digest(self) -> str:
        """Hex digest of everything that shapes the result: the name is left out, and so are the numbers of a protocol, rule or attack that is off."""
        content = plan_to_jsonable(self, include_name=False)
        if not self.secagg.enabled:
            content["secagg"] = {"enabled": False}
        # Spelt as they were before there were other rules and attacks: results of such plans keep their names.
        if rule_of(self) == UNDEFENDED:
            content["robust"] = {"rule": UNDEFENDED}
        if self.attack.name == "none":
            content["attack"] = {"name": "none"}
        content["attack"].pop("compare", None)  # what else is run beside it changes nothing in it
        return digest_json(PLAN_FORMAT, content)


def plan_to_jsonable(plan: Plan, *, include_name: bool = True) -> dict[str, Any]:
    """The plan as plain values; infinity is spelled ``"inf"``, absent keys are left out."""
    raw = plan.model_dump(mode="python", exclude_none=True, exclude=None if include_name else {"name"})
    jsonable = _spell_infinity(raw)
    if not isinstance(jsonable, dict):
        raise TypeError("a plan dumps to a dict")
    return jsonable


def _spell_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spell_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spell_infinity(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def _federation_rules(plan: Plan) -> None:
    federation = plan.federation
    asked = max(1, math.floor(federation.num_clients * federation.fraction + 1e-9))
    if federation.min_clients > asked:
        raise ConfigError(
            f"{federation.min_clients} valid updates are needed but only {asked} clients are asked in a round",
            field="federation.min_clients",
            mend=f"lower it to {asked} or less, or raise federation.num_clients or federation.fraction",
        )


def _data_rules(plan: Plan) -> None:
    data = plan.data
    if data.name == "custom" and data.source is None:
        raise ConfigError("own data needs an entry point", field="data.source", mend='set data.source = "module:function"')
    if data.name != "custom" and data.source is not None:
        raise ConfigError(f'source is for name = "custom", not "{data.name}"', field="data.source", mend="remove it")
    if data.name == "flower" and data.hub is None:
        raise ConfigError("the Flower Datasets adapter needs a data set id", field="data.hub", mend='for example data.hub = "ylecun/mnist"')
    if data.name != "flower" and data.hub is not None:
        raise ConfigError(f'hub is for name = "flower", not "{data.name}"', field="data.hub", mend="remove it")
    if data.partition == "natural" and data.name not in ("heart-disease", "custom", "flower"):
        raise ConfigError(f"{data.name} has no natural owners", field="data.partition", mend='use "iid", "dirichlet" or "shards"')
    if data.name == "heart-disease" and data.partition == "natural" and plan.federation.num_clients != 4:
        raise ConfigError("heart-disease has four hospitals", field="federation.num_clients", mend="set it to 4")
    if data.transform == "scattering" and data.name not in ("mnist", "fashion-mnist", "custom"):
        raise ConfigError(f"scattering needs 28x28 images, {data.name} has none", field="data.transform", mend='use "none"')


def _model_rules(plan: Plan) -> None:
    model = plan.model
    if (model.name == "custom") != (model.factory is not None):
        raise ConfigError(
            'factory and name = "custom" go together', field="model.factory", mend='set both, or neither; factory = "module:function"'
        )
    if len(set(model.personal)) != len(model.personal):
        raise ConfigError("a name appears twice", field="model.personal", mend="name each parameter once")
    if model.name == "cnn" and (plan.data.transform != "none" or plan.data.name not in ("mnist", "fashion-mnist", "custom", "flower")):
        raise ConfigError(
            "the CNN needs 28x28 images", field="model.name", mend='use "logistic" or "mlp", or image data without a transform'
        )


def _privacy_rules(plan: Plan) -> None:
    privacy = plan.privacy
    if plan.is_private:
        if math.isinf(privacy.epsilon):
            raise ConfigError(
                "an infinite epsilon protects nothing", field="privacy.epsilon", mend='give a number, or say privacy.unit = "none" openly'
            )
        if privacy.epsilon_cap is not None and privacy.epsilon_cap < privacy.epsilon:
            raise ConfigError(
                f"the cap {privacy.epsilon_cap:g} is under the epsilon {privacy.epsilon:g} that this run spends",
                field="privacy.epsilon_cap",
                mend="raise the cap or lower privacy.epsilon",
            )
        return
    if not math.isinf(privacy.epsilon):
        raise ConfigError(
            f'epsilon = {privacy.epsilon:g} is claimed, but unit = "none" adds no noise',
            field="privacy.epsilon",
            mend='set privacy.epsilon = inf, or privacy.unit = "example"',
        )
    for field in ("noise_multiplier", "epsilon_cap"):
        if getattr(privacy, field) is not None:
            raise ConfigError('has no meaning with unit = "none"', field=f"privacy.{field}", mend="remove it")


def _secagg_rules(plan: Plan) -> None:
    if not plan.secagg.enabled:
        return
    if plan.federation.fraction < 1:
        raise ConfigError(
            "cohorts are fixed: every client takes part in every round",
            field="federation.fraction",
            mend="set it to 1, or secagg.enabled to false",
        )
    if plan.federation.evaluate_clients:
        raise ConfigError(
            "a client's test result would leave in clear beside its masked update",
            field="federation.evaluate_clients",
            mend="set it to false: the server has a test set of its own",
        )
    if not plan.is_private and not plan.secagg.sketch_without_dp:
        raise ConfigError(
            "without differential privacy a sketch does not hide an update from a server that chooses the model",
            field="secagg.sketch_without_dp",
            mend='set it to true to accept that openly, use privacy.unit = "example", or set secagg.enabled to false',
        )
    if math.isinf(hiding_statement(plan)[0]):  # this and what it calls refuse numbers that break the protocol
        raise ConfigError(
            f"{plan.secagg.sketch_rows} rows show nothing about the size of an update",
            field="secagg.sketch_rows",
            mend="use more: 64 do in most plans, 128 in all",
        )
