"""M3ViT in PyTorch: backbone, gates, heads, rendered scenes, losses, metrics and training."""
