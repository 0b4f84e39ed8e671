"""The settings of a container: their schema, their parsers, and the checked value."""
