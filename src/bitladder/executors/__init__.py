"""What runs workers: see `executor`. Which one a study has: `table`."""
