"""What the commands ask of Azure ML's service: azure-ai-ml is imported here alone, when a command has work for it."""
