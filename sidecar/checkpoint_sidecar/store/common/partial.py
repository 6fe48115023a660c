"""Temporary files of adapters that write a file first and name it then. Adapters of one folder share them."""

from __future__ import annotations

PARTIAL_FOLDER = ".partial"
"""Folder of these files, at the root of the store."""

LEFTOVER_SECONDS = 24 * 3600
"""Age at which such a file counts as left by a writer that was killed."""
