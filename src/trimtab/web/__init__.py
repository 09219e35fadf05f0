"""The annotation app: collects people's preferences in the browser. Needs the ``web`` extra, but not torch."""
