"""Shared memory and the translation of guest addresses."""
