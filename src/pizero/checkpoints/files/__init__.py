"""Files that checkpoints are made of, whatever the project: JSON, safetensors, Orbax, tables of names, remote files."""
