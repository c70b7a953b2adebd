"""Trackers: TensorBoard, Weights & Biases, MLflow and those of other packages; metrics.jsonl works without any."""
