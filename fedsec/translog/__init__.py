"""Transparency log: everything that was announced, in one order, signed; clients refuse a log that shrinks, forks or forgets."""
