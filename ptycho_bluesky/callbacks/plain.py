"""Documents in plain Python values."""

from __future__ import annotations

import json
from typing import Any

from event_model import NumpyEncoder

__all__ = ["plain_document"]


class _Encoder(NumpyEncoder):
    """NumPy as lists and numbers, and what devices or plans put into documents that JSON does not know as text."""

    def default(self, obj: Any) -> Any:
        try:
            return super().default(obj)
        except TypeError:
            if isinstance(obj, bytes):  # caproto hands out some metadata of character arrays so
                return obj.decode("latin-1").rstrip("\0")
            if isinstance(obj, set | frozenset):
                return sorted(obj, key=repr)
            return repr(obj)


def plain_document(doc: dict[str, Any]) -> dict[str, Any]:
    """Copy of a document as it reads after JSON: lists for arrays and tuples, text for what has no other form.

    Nothing that a device or a user put into a document may keep it from the disk.
    """
    return json.loads(json.dumps(doc, cls=_Encoder))
