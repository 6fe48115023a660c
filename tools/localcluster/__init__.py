"""A real two-node Kubernetes and an S3 server on one Linux machine, without Docker.

The pieces, from the bottom up:

- `versions`: what is built; `build`: the Go builder; `requirements`: why a machine cannot run a part. These three use
  the standard library only, because they run before the virtual environment exists.
- `processes`: start and stop by recorded identity; `cgroups`, `network`, `pki`; `workspace`: one directory, and how to
  end everything that was started from it.
- `objectstore`, `controlplane`, `images`, `nodes`, and `cluster` which puts them together; `client`: kubectl and helm.
- `fixtures` for pytest, `cli` for people: `python -m localcluster up`.

This package imports nothing on its own, so that `python -m localcluster.build` works with a bare interpreter.
"""
