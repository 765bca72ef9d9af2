"""What there is, and a clean end."""

import atexit

atexit.register(session.close)  # noqa: F821
print(banner(session))  # noqa: F821, T201
