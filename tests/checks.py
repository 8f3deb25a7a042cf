"""What tests of every kind need: to ask whether a call is refused, to write a file, to kill some work."""

import contextlib

import pytest


def refused(message, call, *given, error=ValueError, **options):
    """Assert that a call is refused with an `error` that `message`, a regular expression, is found in; what is told."""
    with pytest.raises(error, match=message) as caught:
        call(*given, **options)
    return str(caught.value)


def write_file(path, content=b"sound"):
    """Write bytes or text, with the folders above; the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@contextlib.contextmanager
def killed_at(call, owner, name):
    """Let the work inside die in call number `call` of the function `name` of `owner`, a module or a class."""
    function, calls = getattr(owner, name), []

    def die(*given, **options):
        calls.append(given)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, die)
        with pytest.raises(KeyboardInterrupt):
            yield
