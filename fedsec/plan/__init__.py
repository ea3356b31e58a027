"""The plan: one frozen, validated description of a federation, its reader, and what it guarantees in words."""
