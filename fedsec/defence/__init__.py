"""The defence of one run: who counts in each round, and what is remembered of it."""

from fedsec.defence.rounds import Defence

__all__ = ["Defence"]
