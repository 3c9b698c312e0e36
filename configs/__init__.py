"""Defaults, papers' numbers and published settings, as YAML."""
