"""The shipped networks: their cards, their presets, and other libraries' beside ours."""
