"""What the tasks share whose model writes its answer: where its decoder begins, its loss, and how it writes."""
