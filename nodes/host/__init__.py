"""The only door to ComfyUI's inner modules (comfy.*, folder_paths, server, latent_preview)."""
