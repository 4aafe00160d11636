"""Engines: a checkpoint's directory, token ids and a number of new tokens in, the time of every step out.

Nothing else about measuring lives here: search, monitor, warm-up and stopping stand outside. One more engine is a file
like `eager` and a row in `table.ENGINES`.
"""
