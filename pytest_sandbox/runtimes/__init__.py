"""Runtimes: what builds images and starts sandboxes."""
