"""A real two-node Kubernetes and an S3 server on one Linux machine, without Docker.

The pieces, from the bottom up:

`versions` what is built, `build` the Go builder (standard library only: it runs before the virtual environment exists),
`processes` start and stop by recorded identity, `pki`, `objectstore`, `controlplane`, `images`, `nodes`,
`cluster` which puts them together, `requirements` why a machine cannot run them, `fixtures` for pytest, `cli` for people.

This package imports nothing on its own, so that `python -m localcluster.build` works with a bare interpreter.
"""
