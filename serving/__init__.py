"""The model side: what a repository holds, how Triton serves it, and the backend that runs SavedModels.

This package never imports the bridge. Only `serving.runtime` and what a backend loads need TensorFlow.
"""
