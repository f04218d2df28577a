"""Pictures: of a model's graph (`kvik inspect --graph`) and of its attention (`kvik attention`).

- structure.py: from the engine's nodes to boxes and edges; repeated layers become one
- layout.py: where the boxes go, layer by layer, and how the edges run
- svg.py, png.py: the two renderers of a finished layout
- heat.py: panels of attention weights, their places and colours; labels.py: tokens that can be read
- heat_svg.py, heat_png.py: the two renderers of finished panels
"""
