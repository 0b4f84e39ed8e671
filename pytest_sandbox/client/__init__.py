"""The client's side of the launcher: its start, requests, and the cleanup after killed sessions."""
