"""What the client and the launcher share: the spec of a container, how it is created, and how it is
joined.
"""
