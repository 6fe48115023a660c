"""The only place that imports torch: DCP storage, the Checkpointer, signals and collectives."""
