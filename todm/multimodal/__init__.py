"""Multi-modal: transformers models of two towers, such as LLaVA or Qwen2-Audio, under compression."""
