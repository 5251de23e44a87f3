"""What lies in a model folder: its config, its tokenizer, and whether it is whole. Nothing here imports torch."""
