"""What changes the model before training and is undone after: one function in one file each."""
