"""Where the host keeps its models."""

models_path = "no such folder"
