"""Trackers: TensorBoard, Weights & Biases, MLflow and those of other packages, next to metrics.jsonl, which needs none of them."""
