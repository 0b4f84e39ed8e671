"""Images: references, registries, layers, and the store that containers start from."""
