"""Conformance checks at the vhost-user socket: requirements, the raw front end that they use, and the runner."""
