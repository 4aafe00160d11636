"""Every number that a report shows with its limits. Pure functions: numpy and scipy, no records, no files.

Proportions, differences and margins are fractions of 1, never points or per cent, unless a name says so.
"""
