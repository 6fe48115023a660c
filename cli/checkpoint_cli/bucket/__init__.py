"""The bucket door: verbs on the run at a URL, without a cluster."""
