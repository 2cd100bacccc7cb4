"""ChatGLM's and Baichuan's own layouts, converted to transformers'.

Offers: converted(path) -> Path, convert(source, target).
May import: families, hub.
"""
