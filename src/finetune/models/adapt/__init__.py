"""The adaptations, which change a model before training and are undone after it; each is a file."""
