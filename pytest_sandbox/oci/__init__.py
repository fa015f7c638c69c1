"""A container library: images, layers, bundles. It knows neither recipes nor pytest."""
