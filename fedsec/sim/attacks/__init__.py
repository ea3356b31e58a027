"""What attackers of a simulation do: pure functions from what they know to what they send. docs/attacks.md explains each."""
