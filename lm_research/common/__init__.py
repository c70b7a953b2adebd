"""What all packages stand on: paths, texts, JSON and YAML, writing to disk, streams, flags, and how a process is interrupted."""
