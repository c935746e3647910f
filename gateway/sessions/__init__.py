"""Conversations that live on the server: a turn sends only what is new."""

from gateway.sessions.conversation import Conversation, Stateless
from gateway.sessions.conversations import Conversations
from gateway.sessions.records import Limits
from gateway.sessions.sessions import Sessions

__all__ = ["Conversation", "Conversations", "Limits", "Sessions", "Stateless"]
