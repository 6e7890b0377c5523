"""What runs models: TensorFlow's library, ONNX Runtime."""
