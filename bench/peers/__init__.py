"""The servers of the chat, each as small as its framework allows."""
