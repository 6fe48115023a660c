"""Hooks for experiment trackers. Each module imports its tracker when a hook is made, and only then."""
