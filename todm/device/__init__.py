"""What runs on a device: onnxruntime, numpy, soundfile and kaldi-native-fbank, and no torch."""
