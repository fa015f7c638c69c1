"""What untrusted code can do from inside a sandbox, over every launcher."""
