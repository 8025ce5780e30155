// One server process of the chat: node server.js PORT REDIS_PORT
const { createServer } = require("node:http");
const { createAdapter } = require("@socket.io/redis-adapter");
const { createClient } = require("redis");
const { Server } = require("socket.io");

async function main() {
  const [port, redis] = process.argv.slice(2).map(Number);
  const publisher = createClient({ url: `redis://127.0.0.1:${redis}` });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);

  const http = createServer();
  const io = new Server(http, { adapter: createAdapter(publisher, subscriber) });
  io.on("connection", (socket) => {
    socket.join("room");
    socket.on("say", (message) => io.to("room").emit("chat", message));
  });
  http.listen(port, "127.0.0.1");
}

main();
