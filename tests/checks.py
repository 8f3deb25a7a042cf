"""What tests of every kind ask."""

import pytest


def refused(message, call, *given, **options):
    """Assert that a call is refused with a `ValueError` that `message`, a regular expression, is found in."""
    with pytest.raises(ValueError, match=message):
        call(*given, **options)
