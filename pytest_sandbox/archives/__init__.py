"""Archives and tar streams between host and sandbox; nothing untrusted is ever unpacked by the
standard library.

- `transcode`: an archive that upstream published becomes a clean tar stream, which the engine
  unpacks inside the sandbox.
- `pack`: a file or folder of the host becomes a tar stream.
- `unpack_to_host`: a tar stream that came out of a sandbox becomes a file or folder of the host.
"""

from pytest_sandbox.archives.clean import FORMATS, Report, sniff, transcode
from pytest_sandbox.archives.copies import pack, unpack_to_host
from pytest_sandbox.archives.rules import BOUNDS, Bounds

__all__ = [
    "BOUNDS",
    "FORMATS",
    "Bounds",
    "Report",
    "pack",
    "sniff",
    "transcode",
    "unpack_to_host",
]
