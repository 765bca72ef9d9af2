"""The whole loop on one machine: every process started, driven, measured and stopped."""
