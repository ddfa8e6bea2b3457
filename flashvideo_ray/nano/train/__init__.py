"""How the nano model is trained: `python -m flashvideo_ray.nano.train all`, or one part: vae, text, stage1 …


Everything a part needs is drawn procedurally, so there is no data to fetch. A run is seeded, writes its curve as JSON
lines, and after a kill continues from its last checkpoint.
"""
