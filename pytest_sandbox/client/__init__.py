"""The calling process's side of its launcher."""
