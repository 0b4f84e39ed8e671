"""The benchmark: ``python -m bench`` compares the library with the floor, a program in C that does
the least that a container needs, and with every installed peer, in one run.
"""
