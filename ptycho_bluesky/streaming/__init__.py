"""Frames on their way: sources, join and accounting, batches, sinks, replay."""
