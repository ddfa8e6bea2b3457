"""FlashVideo (arXiv 2502.05179) as a distributed batch rendering pipeline on Ray."""
