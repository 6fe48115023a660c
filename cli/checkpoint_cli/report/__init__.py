"""A run as one HTML page: ``gather`` reads it, ``decide`` modules describe it, and ``draw`` turns that into markup.

The page needs no network, no scripts and no other file. Everything quoted from the log is escaped.
"""
