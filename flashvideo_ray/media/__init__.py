"""Video files: encoding and decoding, the mark and the signature that say how they were made, and reading them back."""
