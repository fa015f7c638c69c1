"""The actions of a plan, as operations inside a sandbox."""
