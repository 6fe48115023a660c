"""Properties are checked on fewer examples than hypothesis likes, and without a deadline: CI machines stall."""

from hypothesis import settings

settings.register_profile("core", max_examples=50, deadline=None)
settings.load_profile("core")
