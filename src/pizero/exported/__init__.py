"""Runs what `pizero export` wrote, without PyTorch: NumPy, Pillow, SentencePiece, and ONNX Runtime or OpenVINO.

Python 3.10 and later. `pizero.exported.policy.load_exported` opens a folder.
"""
