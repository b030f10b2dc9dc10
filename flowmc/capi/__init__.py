"""The C interface: a host program updates the field in its own memory.

``flowmc-capi`` (:mod:`~flowmc.capi.build`) makes ``libflowmc.so`` with its header.  What the
library does is :class:`~flowmc.capi.host.HostStream`; :mod:`~flowmc.capi.glue` stands between that
and C.
"""
