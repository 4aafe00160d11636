"""Text that is read or shown: running text for measurements, and words for people."""
