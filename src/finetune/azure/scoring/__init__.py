"""What `finetune deploy --cpu-image` sends along: a folder of its own, since all of it is uploaded."""
