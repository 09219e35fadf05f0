"""The annotation app: people's preferences, collected in the browser. Needs ``pip install trimtab[web]``, no torch."""
