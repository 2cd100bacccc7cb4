"""Chat templates: render conversations as the model expects them, and find where the answers stand in the text.

Offers: chat_template.ChatTemplate, generation_prompt.forms, thinking, jinja_environment, turn_layout.TurnLayout.
May import: errors, records.
"""
