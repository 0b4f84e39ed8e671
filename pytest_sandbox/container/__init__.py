"""Containers, networks, and what can be done with them."""
