"""What there is."""

print(banner(session))  # noqa: F821, T201
