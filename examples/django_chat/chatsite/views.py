"""The page, and a plain synchronous view that speaks to every socket."""

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.http import HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>Chat</title>
<style>body { max-width: 40rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui }</style>
<main>
  <h1>Chat</h1>
  <form><input aria-label="Message" autofocus> <button>Say</button></form>
  <div id="log" role="log" aria-label="Messages"></div>
</main>
<script>
  const socket = new WebSocket(`ws://${location.host}/ws/chat/`);
  socket.onmessage = (event) => log.append(event.data, document.createElement("br"));
  document.forms[0].onsubmit = (event) => {
    event.preventDefault();
    socket.send(event.target[0].value);
    event.target.reset();
  };
</script>"""


def page(request):
    """The chat in a browser."""
    return HttpResponse(PAGE)


@csrf_exempt
@require_POST
def announce(request):
    """Tell everyone in the chat what the request's body says."""
    text = request.body.decode()
    async_to_sync(get_channel_layer().group_send)("chat", {"type": "chat.system_message", "text": text})
    return HttpResponse("announced\n")
