"""A study's records as the one table that deciding and reporting read: every number with low, value and high.

What is estimated is estimated in ``stats``; here stands of what, for whom, and why not.
"""
