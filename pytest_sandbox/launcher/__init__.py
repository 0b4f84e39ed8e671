"""The small process that makes containers, and the init of each of them."""
