"""Plan -> SystemRequirements -> ImageSpec -> Dockerfile and name; pure."""
