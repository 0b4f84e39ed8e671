"""A guest book that visitors sign over HTTP."""
