"""The command line: `checkpoint <verb> <url>` for a bucket, `kubectl ckpt <verb> <name>` for a cluster.

Modules import what a verb needs when the verb runs, so that `--help` and completion answer at once.
"""
