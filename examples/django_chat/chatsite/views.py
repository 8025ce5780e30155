"""The page, and a plain synchronous view that speaks to every socket."""

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.http import HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

PAGE = """<!doctype html><title>Chat</title>
<ul id=log></ul><form><input autofocus><button>Say</button></form>
<script>
  const socket = new WebSocket(`ws://${location.host}/ws/chat/`);
  socket.onmessage = (event) => {
    const line = document.createElement("li");
    line.textContent = event.data;
    log.append(line);
  };
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
