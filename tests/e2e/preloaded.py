"""What ``warm`` imports once for all its commands."""

import sklearn.datasets  # noqa: F401

import client.app
import client.warm
import fedsec.cli.simulate
import fedsec.report.plots
import fedsec.report.progress  # noqa: F401
import server.app
import server.federation  # noqa: F401

client.warm.preload()
