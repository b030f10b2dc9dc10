"""``flowmc correlate``: what an ensemble says about theories nearby.

``config`` reads the file, ``session`` passes the configurations (``stream``) to the measurements
(``measurement``: what they have in common; ``targets``, ``difference``: what they are) and keeps
their series (``store``), ``output`` writes results.  Several ensembles have a reader, a session,
sections and a page of their own (``combine_...``) around the estimator (``combined``).
"""
