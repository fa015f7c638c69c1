"""What an installation must show."""
