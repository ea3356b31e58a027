"""Audits of a plan: its federation trained with canaries in it, in this process, and attacked.

``audit_plan`` runs the attacks and the controls; what it gives is plain data (:mod:`fedsec.privacy.auditing.results`).
"""

from fedsec.sim.audit.audit import AUDIT_DELTA, CONTROL_EPSILON, audit_controls, audit_plan
from fedsec.sim.audit.clients import audit_clients

__all__ = ["AUDIT_DELTA", "CONTROL_EPSILON", "audit_clients", "audit_controls", "audit_plan"]
