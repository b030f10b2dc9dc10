"""Lattice field configurations: file formats to numpy arrays and back.

Needs numpy only, so that a login node can inspect and convert files:

    >>> import flowmc_adapters
    >>> configuration = flowmc_adapters.read("lat.1000")        # doctest: +SKIP
    >>> configuration.links.shape                               # [t, z, y, x, mu, row, col]
    (8, 4, 4, 4, 4, 3, 3)
    >>> flowmc_adapters.write("lat.1001", configuration, "nersc")  # doctest: +SKIP

Formats are recognised by content. Checksums, plaquettes and link traces are verified on reading and
written on writing; writing is atomic and reproducible; nothing pickled is ever read. Errors are
`FormatError` (file, byte, reason) and its child `CheckError` (a sound file whose content fails a
check). A format of your own: subclass `Format`, then `register` it.
"""

from .atomic import atomic_write
from .changes import reunitarize
from .configuration import Checksum, Configuration, Header
from .conversion import Conversion, convert
from .errors import CheckError, FormatError
from .field_configuration import FieldConfiguration
from .fields.files import FIELD_FORMATS, append_field, field_numbers, read_field, write_field
from .formats import Format
from .inspection import Inspection, examine, inspect
from .numpy_files.npy import read_array, write_array
from .observables import GroupErrors, Plaquettes, group_errors, link_trace, plaquettes
from .registry import detect, format_named, formats, read, read_header, register, write

__all__ = [
    "FIELD_FORMATS",
    "CheckError",
    "Checksum",
    "Configuration",
    "Conversion",
    "FieldConfiguration",
    "Format",
    "FormatError",
    "GroupErrors",
    "Header",
    "Inspection",
    "Plaquettes",
    "append_field",
    "atomic_write",
    "convert",
    "detect",
    "examine",
    "field_numbers",
    "format_named",
    "formats",
    "group_errors",
    "inspect",
    "link_trace",
    "plaquettes",
    "read",
    "read_array",
    "read_field",
    "read_header",
    "register",
    "reunitarize",
    "write",
    "write_array",
    "write_field",
]
