"""Bytes: checksummed writing and verified reading of large objects. Knows no torch, no policy and no Kubernetes."""
