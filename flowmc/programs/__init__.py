"""Other people's programs: their command lines, how they are run, and how they are ended."""
