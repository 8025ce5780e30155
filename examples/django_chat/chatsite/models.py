"""What the chat keeps in the database."""

from django.db import models


class Client(models.Model):
    """One connected websocket, under the name that reaches it."""

    channel_name = models.CharField(max_length=100, unique=True)


class Thumbnail(models.Model):
    """One picture that the worker has made."""

    source = models.CharField(max_length=200)
    made_by = models.IntegerField(help_text="process id of the worker")
