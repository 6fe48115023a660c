"""Reports served live on loopback: from the list of runs to a run to a snapshot. Reads only."""
