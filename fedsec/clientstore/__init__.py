"""All that a client keeps between messages: ledger, round keys, stored updates, personal parameters."""
