"""Pictures of a model's graph: `kvik inspect --graph`.

- structure.py: from the engine's nodes to boxes and edges; repeated layers become one
- layout.py: where the boxes go, layer by layer, and how the edges run
- svg.py, png.py: the two renderers of a finished layout
"""
