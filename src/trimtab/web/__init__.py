"""The annotation app: people's preferences, collected in the browser. Needs the ``web`` extra, no torch."""
