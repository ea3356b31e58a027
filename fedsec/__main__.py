"""``python -m fedsec`` is the ``fedsec`` command."""

from fedsec.cli.main import run

run()
