"""Which numeric precision should this causal language model be deployed in?"""

__version__ = "0.1.0"
