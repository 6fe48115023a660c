"""A run seen from outside of any attempt: open, inspect, check, change through the log, and follow it."""
