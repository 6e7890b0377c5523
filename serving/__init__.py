"""The model side: what a repository holds, how Triton serves it, and the backend that runs SavedModels.

This package never imports the bridge, nor TensorFlow's Python package: `serving.runtimes` loads its library.
"""
