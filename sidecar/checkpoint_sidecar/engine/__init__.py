"""Writes large objects with checksums and reads them verified. Independent of torch, policy and Kubernetes."""
