"""Run by the image's own Python: reads a tar of sources, writes a tar of their compiled forms, in the same order.

A compiled file carries neither time nor size of its source and is used without looking at it: the image is read-only.
What does not compile gives an empty file: some packages carry sources for other versions of Python.
"""

import importlib.util
import io
import sys
import tarfile
import warnings
from importlib._bootstrap_external import _code_to_hash_pyc  # type: ignore[attr-defined]

warnings.simplefilter("ignore")


def compiled(name: str, text: bytes) -> bytes:
    try:
        code = compile(text, f"/{name}", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return b""
    return bytes(_code_to_hash_pyc(code, importlib.util.source_hash(text), checked=False))


with (
    tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as sources,
    tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as results,
):
    for entry in sources:
        source = sources.extractfile(entry)
        assert source is not None
        content = compiled(entry.name, source.read())
        result = tarfile.TarInfo(entry.name)
        result.size = len(content)
        results.addfile(result, io.BytesIO(content))
