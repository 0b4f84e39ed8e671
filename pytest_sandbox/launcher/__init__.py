"""The launcher: a small process for each client that creates containers, and its helpers."""
