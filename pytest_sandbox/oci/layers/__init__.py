"""Layers: read, applied onto trees, and made from trees.

Everything works on open folders, never on paths: the same code serves root and an ordinary user,
inside the id map that sandboxes use.
"""
