"""One script per claim of speed; run as ``python -m experiments.bench.NAME [--json]``. Peers are measured in the same run."""
