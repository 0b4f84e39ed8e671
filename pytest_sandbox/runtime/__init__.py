"""What client and launcher share: the spec of a container, the protocol, and how a container is
created and joined.
"""
