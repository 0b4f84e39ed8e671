"""The command line, ``pytest-sandbox VERB``."""
