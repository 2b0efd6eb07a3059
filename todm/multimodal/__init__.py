"""Multi-modal: transformers models of two block_lists, such as LLaVA or Qwen2-Audio, under compression."""
