"""RunEngine callbacks."""
