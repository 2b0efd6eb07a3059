"""What a bundle costs on this machine, in onnxruntime and in sherpa-onnx, and beside a peer."""
