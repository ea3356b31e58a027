"""Secure aggregation: fixed point, secret sharing, cohorts, masks, sketches, and the protocol over them."""
