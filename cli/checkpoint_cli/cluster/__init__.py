"""The cluster door: verbs on a Checkpoint by its name, through the API server."""
