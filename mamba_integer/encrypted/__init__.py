"""Inference on ciphertexts: docs/ENCRYPTED.md."""
