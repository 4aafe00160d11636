"""From an audited checkpoint to a model repository on the Hub, with a card written from the results."""

from bitladder.publish.upload import Publication, publish_checkpoint

__all__ = ["Publication", "publish_checkpoint"]
