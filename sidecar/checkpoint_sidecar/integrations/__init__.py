"""Adapters of trainers, and hooks of experiment trackers. Each imports only what it is for, a hook when it is made."""
