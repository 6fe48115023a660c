"""A snapshot as files for other programs: safetensors, or one of ``torch.save``. Imports torch only where needed."""
