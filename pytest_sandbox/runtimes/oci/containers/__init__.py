"""Sandboxes that `pytest-sandbox run` started, as any process of the user finds them on the disk.

There is no daemon to ask: each has a folder `containers/<id>/` in the store, which its own
supervisor keeps true. See folder.py for what is in it.
"""
