"""The story of `make demo`, in parts that the cluster tests use as well.

`manifests` builds what a user would write, `installation` installs the operator, `training` starts and watches a job,
`comparison` compares two finished runs bit for bit, `report` judges, `story` tells it all in order.
"""
