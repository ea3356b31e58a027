"""The edge: gateway and agent between Flower's processes, over mutual TLS; enrolment of certificates."""
