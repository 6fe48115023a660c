"""The admission webhook, a process of its own: injection where the API server has no MutatingAdmissionPolicy."""
