"""The benchmark: ``python -m bench`` measures the library against the floor and against every peer
that is installed, in one run.
"""
