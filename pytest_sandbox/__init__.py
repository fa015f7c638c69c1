"""pytest-sandbox proves that software installs."""
