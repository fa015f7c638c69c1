"""What pytest sees."""
